// Package oci is the command line of an OCI runtime over package runtime: the
// verbs, options, exit statuses, files and messages that runc has and that
// containerd's io.containerd.runc.v2 shim, CRI-O and podman expect.
//
//	snaprun --root /run/snaprun create --bundle DIR --pid-file FILE ID
//	snaprun --root /run/snaprun start ID
//
// Every call is a process of its own. What the next one needs lies in a directory per
// container, below --root and of mode 0700:
//
//	ROOT/ID/state.json    written whole and renamed: bundle, cgroup, process, …
//	ROOT/ID/config.json   the bundle's, as it was when the container was created
//	ROOT/ID/start         FIFO that the created process waits on
//	ROOT/ID/started       FIFO that ends when it has executed its program
//	ROOT/.seccomp/        compiled filters
//
// The directory itself is locked (flock) by whoever changes the container.
// It is made before anything of the container is, and removed after all of it,
// so that delete --force finds what a killed runtime left.
package oci

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// DefaultRoot is where containers are known if --root is not given.
const DefaultRoot = "/run/snaprun"

// A CLI is one call of the command line.
type CLI struct {
	Name                  string // as it was called
	Version               string
	Stdin, Stdout, Stderr *os.File
	Getenv                func(string) string

	root      string
	log       string
	logFormat string
	systemd   bool
}

// verbs are what the command line can do. One that ends with a status of its own returns a *statusError.
var verbs = map[string]func(context.Context, *CLI, []string) error{
	"create": create, "start": start, "run": run, "state": state, "kill": kill, "delete": remove, "exec": execute,
	"ps": ps, "pause": pause, "resume": resume, "update": update, "events": events, "features": showFeatures, "list": list, "spec": spec,
	"checkpoint": unsupported, "restore": unsupported,
}

// Main runs a command line without the program's name and returns its exit status.
func (c *CLI) Main(args []string) int {
	// It does one thing after the other: waking further threads to look for work is a tenth of a start.
	goruntime.GOMAXPROCS(1)
	err := c.main(args)
	var st *statusError
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp) || errors.Is(err, errPrinted):
		return 0
	case errors.As(err, &st):
		if st.err != nil {
			c.report("error", st.err.Error())
		}
		return st.status
	}
	c.report("error", err.Error())
	return 1
}

// A statusError is an exit status other than 1, or one without a message.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string {
	if e.err == nil {
		return "exit status " + strconv.Itoa(e.status)
	}
	return e.err.Error()
}

func (e *statusError) Unwrap() error { return e.err }

func (c *CLI) main(args []string) error {
	f := c.flags("", "[global options] VERB [options] [ID] [ARG...]")
	f.StringVar(&c.root, "root", DefaultRoot, "`DIR` of the containers' states")
	f.StringVar(&c.log, "log", "", "`FILE` that messages are appended to, besides standard error")
	f.StringVar(&c.logFormat, "log-format", "text", "text or json")
	f.Bool("debug", false, "taken, as runc does; there is nothing more to log")
	version := both(f, f.BoolVar, "version", "v", "show versions")
	f.BoolVar(&c.systemd, "systemd-cgroup", false, "have systemd make the cgroup: cgroupsPath is SLICE:PREFIX:NAME")
	rootless := f.String("rootless", "auto", "only false and auto: it takes root")
	criu := f.String("criu", "", "ignored")
	if err := f.Parse(args); err != nil {
		return err
	}
	_ = criu
	switch {
	case c.logFormat != "text" && c.logFormat != "json":
		return fmt.Errorf("--log-format %q: want text or json", c.logFormat)
	case *version:
		_, err := fmt.Fprintf(c.Stdout, "%s version %s\nspec: %s\n", c.Name, c.Version, specs.Version)
		return err
	case *rootless != "auto" && *rootless != "false":
		return fmt.Errorf("--rootless %s: not supported", *rootless)
	case f.NArg() == 0:
		f.Usage()
		return &statusError{status: 2}
	}
	name := f.Arg(0)
	do := verbs[name]
	if do == nil {
		return fmt.Errorf("unknown command %q; see %s --help", name, c.Name)
	}
	root, err := filepath.Abs(c.root)
	if err != nil {
		return err
	}
	c.root = root
	return do(context.Background(), c, f.Args())
}

// flags is a set of options that explains itself on standard output.
func (c *CLI) flags(verb, usage string) *flag.FlagSet {
	f := flag.NewFlagSet(verb, flag.ContinueOnError)
	f.SetOutput(io.Discard) // an error is reported as any other
	f.Usage = func() {
		fmt.Fprintf(c.Stdout, "Usage: %s\n\n", strings.Join(strings.Fields(c.Name+" "+verb+" "+usage), " "))
		f.SetOutput(c.Stdout)
		f.PrintDefaults()
		f.SetOutput(io.Discard)
		if verb == "" {
			fmt.Fprintf(c.Stdout, "\nVerbs: create start state kill delete exec ps pause resume update events features list spec run\n")
		}
	}
	return f
}

// both registers an option under two names.
func both(f *flag.FlagSet, add func(*bool, string, bool, string), long, short, usage string) *bool {
	v := new(bool)
	add(v, long, false, usage)
	add(v, short, false, "short for --"+long)
	return v
}

// text2 registers an option with a value under two names.
func text2(f *flag.FlagSet, long, short, value, usage string) *string {
	v := f.String(long, value, usage)
	f.StringVar(v, short, value, "short for --"+long)
	return v
}

// each registers an option that may be given several times.
func each(f *flag.FlagSet, to *[]string, usage string, names ...string) {
	for _, n := range names {
		f.Func(n, usage, func(s string) error { *to = append(*to, s); return nil })
	}
}

// arguments parses a verb's command line and checks the number of what is left; most -1 is any.
func arguments(f *flag.FlagSet, args []string, least, most int) ([]string, error) {
	if err := f.Parse(args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, err
		}
		return nil, fmt.Errorf("%s: %w", args[0], err)
	}
	if n := f.NArg(); n < least || most >= 0 && n > most {
		return nil, fmt.Errorf("%s: %d arguments: want %s; see --help", args[0], n, want(least, most))
	}
	return f.Args(), nil
}

func want(least, most int) string {
	switch {
	case most < 0:
		return fmt.Sprintf("at least %d", least)
	case least == most:
		return strconv.Itoa(least)
	}
	return fmt.Sprintf("%d to %d", least, most)
}

func unsupported(_ context.Context, _ *CLI, args []string) error {
	return fmt.Errorf("%s: not supported", args[0])
}

// report writes a message to the log and, if it is an error, to standard error.
func (c *CLI) report(level, msg string) {
	if level == "error" || c.log == "" {
		fmt.Fprintf(c.Stderr, "%s: %s\n", c.Name, msg)
	}
	if c.log == "" {
		return
	}
	now := time.Now()
	line := fmt.Sprintf("time=%q level=%s msg=%q\n", now.Format(time.RFC3339), level, msg)
	if c.logFormat == "json" {
		b, err := json.Marshal(struct {
			Level string    `json:"level"`
			Msg   string    `json:"msg"`
			Time  time.Time `json:"time"`
		}{level, msg, now})
		if err != nil {
			return
		}
		line = string(b) + "\n"
	}
	w, err := os.OpenFile(c.log, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_CLOEXEC, 0o644)
	if err == nil {
		_, err = w.WriteString(line)
		err = errors.Join(err, w.Close())
	}
	if err != nil {
		fmt.Fprintf(c.Stderr, "%s: --log: %v\n", c.Name, err)
	}
}
