package main

import (
	"fmt"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A flagSet is what a verb takes: options as docker has them, that is
// --name value, --name=value, -n value, -nvalue, and clusters as in -it.
type flagSet struct {
	usage   string // "run [OPTIONS] IMAGE [COMMAND] [ARG...]"
	about   string // a paragraph or more
	example string // lines, without indentation
	stop    bool   // the first argument ends the options: the rest is a command
	flags   []*option
}

// An option is one flag. meta names its value; "" makes it boolean.
type option struct {
	long, short string
	meta, help  string
	set         func(string) error
	global      bool
}

func (f *flagSet) add(names, meta, help string, set func(string) error) {
	o := &option{meta: meta, help: help, set: set}
	for name := range strings.SplitSeq(names, ",") {
		if utf8.RuneCountInString(name) == 1 {
			o.short = name
		} else if o.long == "" {
			o.long = name
		} else { // a second long name, as --net of --network
			f.flags = append(f.flags, &option{long: name, meta: meta, set: set, global: true})
		}
	}
	f.flags = append(f.flags, o)
}

// flag is a boolean option. names are "long", "s,long" or "s,long,otherlong".
func (f *flagSet) flag(p *bool, names, help string) {
	f.add(names, "", help, func(s string) (err error) {
		if *p, err = strconv.ParseBool(s); err != nil {
			err = fmt.Errorf("%q: want true or false", s)
		}
		return err
	})
}

func (f *flagSet) text(p *string, names, meta, help string) {
	f.add(names, meta, help, func(s string) error { *p = s; return nil })
}

func (f *flagSet) list(p *[]string, names, meta, help string) {
	f.add(names, meta, help, func(s string) error { *p = append(*p, s); return nil })
}

func (f *flagSet) number(p *int, names, meta, help string) {
	f.add(names, meta, help, func(s string) (err error) {
		if *p, err = strconv.Atoi(s); err != nil {
			err = fmt.Errorf("%q: want a number", s)
		}
		return err
	})
}

// parse parses the options of a verb and checks the number of arguments; max
// -1 is no limit.
func (f *flagSet) parse(env *Env, args []string, min, max int) ([]string, error) {
	env.register(f)
	if env.describe != nil {
		env.describe(f)
		return nil, errHelp
	}
	rest, err := f.parseArgs(args, !f.stop)
	verb, _, _ := strings.Cut(f.usage, " ")
	switch {
	case err == errHelp:
		env.Stdout.WriteString(f.help())
		return nil, err
	case err != nil:
		return nil, usageErrorf("%s: %v; see snapctl %s --help", verb, err, verb)
	case len(rest) < min || max >= 0 && len(rest) > max:
		return nil, usageErrorf("%s: %d arguments given; usage: snapctl %s", verb, len(rest), f.usage)
	}
	return rest, nil
}

// parseArgs handles the options in args and returns the arguments. With
// interspersed, options may come after arguments.
func (f *flagSet) parseArgs(args []string, interspersed bool) (rest []string, err error) {
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		switch {
		case arg == "--":
			return append(rest, args...), nil
		case strings.HasPrefix(arg, "--"):
			args, err = f.long(arg[2:], args)
		case len(arg) > 1 && arg[0] == '-':
			args, err = f.cluster(arg[1:], args)
		case !interspersed:
			return append(append(rest, arg), args...), nil
		default:
			rest = append(rest, arg)
		}
		if err != nil {
			return nil, err
		}
	}
	return rest, nil
}

func (f *flagSet) find(long, short string) *option {
	for _, o := range f.flags {
		if long != "" && o.long == long || short != "" && o.short == short {
			return o
		}
	}
	return nil
}

func (f *flagSet) long(arg string, args []string) ([]string, error) {
	name, value, given := strings.Cut(arg, "=")
	o := f.find(name, "")
	switch {
	case o == nil && name == "help":
		return nil, errHelp
	case o == nil:
		return nil, fmt.Errorf("unknown option --%s", name)
	case given:
	case o.meta == "":
		value = "true"
	case len(args) == 0:
		return nil, fmt.Errorf("option --%s needs a value (%s)", name, o.meta)
	default:
		value, args = args[0], args[1:]
	}
	return args, wrap("--"+name, o.set(value))
}

// cluster handles -abc: booleans up to the first option with a value, which takes the rest.
func (f *flagSet) cluster(arg string, args []string) ([]string, error) {
	for arg != "" {
		_, size := utf8.DecodeRuneInString(arg)
		name := arg[:size]
		arg = arg[size:]
		o := f.find("", name)
		value := "true"
		switch {
		case o == nil && name == "h":
			return nil, errHelp
		case o == nil:
			return nil, fmt.Errorf("unknown option -%s", name)
		case o.meta == "" && strings.HasPrefix(arg, "="):
			value, arg = arg[1:], ""
		case o.meta == "":
		case arg != "":
			value, arg = strings.TrimPrefix(arg, "="), ""
		case len(args) == 0:
			return nil, fmt.Errorf("option -%s needs a value (%s)", name, o.meta)
		default:
			value, args = args[0], args[1:]
		}
		if err := wrap("-"+name, o.set(value)); err != nil {
			return nil, err
		}
	}
	return args, nil
}

func wrap(option string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", option, err)
	}
	return nil
}

// help is the text of --help.
func (f *flagSet) help() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Usage: snapctl %s\n\n%s\n", f.usage, f.about)
	writeOptions(&b, "\nOptions:\n", f.flags, false)
	if f.example != "" {
		b.WriteString("\nExample:\n")
		for line := range strings.SplitSeq(f.example, "\n") {
			b.WriteString("  " + line + "\n")
		}
	}
	b.WriteString("\nGlobal options are listed by snapctl --help.\n")
	return b.String()
}

func writeOptions(b *strings.Builder, title string, flags []*option, global bool) {
	var names, helps []string
	width := 0
	shown := append([]*option(nil), flags...)
	sort.SliceStable(shown, func(i, j int) bool { return shown[i].long < shown[j].long })
	for _, o := range shown {
		if o.global != global || o.help == "" {
			continue
		}
		name := "    "
		if o.short != "" {
			name = "-" + o.short
			if o.long != "" {
				name += ", "
			}
		}
		if o.long != "" {
			name += "--" + o.long
		}
		if o.meta != "" {
			name += " " + o.meta
		}
		names, helps = append(names, name), append(helps, o.help)
		width = max(width, len(name))
	}
	if len(names) == 0 {
		return
	}
	b.WriteString(title)
	for i, name := range names {
		fmt.Fprintf(b, "  %-*s  %s\n", width, name, helps[i])
	}
}
