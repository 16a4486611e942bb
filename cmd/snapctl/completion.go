package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/snapfs/snapfs/internal/control"
)

func completion(ctx context.Context, env *Env, args []string) error {
	f := &flagSet{
		usage:   "completion bash|zsh|fish",
		about:   "Print completions for a shell, to be sourced by it.",
		example: "snapctl completion bash > /etc/bash_completion.d/snapctl",
	}
	rest, err := f.parse(env, args, 1, 1)
	if err != nil {
		return err
	}
	script, ok := map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}[rest[0]]
	if !ok {
		return usageErrorf("completion: %q: want bash, zsh or fish", rest[0])
	}
	_, err = env.Stdout.WriteString(script)
	return err
}

// The shells' part is small: they ask snapctl for the words that may come next.
const (
	bashCompletion = `_snapctl() {
    local IFS=$'\n' cur="${COMP_WORDS[COMP_CWORD]}"
    COMPREPLY=($(snapctl __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    declare -F __ltrim_colon_completions >/dev/null && __ltrim_colon_completions "$cur"
}
complete -o default -F _snapctl snapctl
`
	zshCompletion = `#compdef snapctl
_snapctl() {
    local -a words_
    words_=("${(@f)$(snapctl __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "$words_" ]]; then compadd -a words_; else _files; fi
}
compdef _snapctl snapctl
`
	fishCompletion = `function __snapctl
    set -l words (commandline -opc) (commandline -ct)
    snapctl __complete $words[2..-1] 2>/dev/null
end
complete -c snapctl -a '(__snapctl)'
`
)

// completeTimeout bounds how long a key press may wait for the daemon.
const completeTimeout = time.Second

// complete is the hidden verb that prints what the last of args may become.
func complete(ctx context.Context, env *Env, args []string) error {
	ctx, cancel := context.WithTimeout(ctx, completeTimeout)
	defer cancel()
	if len(args) == 0 {
		args = []string{""}
	}
	last := args[len(args)-1]
	f := &flagSet{}
	env.register(f)
	before, err := f.parseArgs(args[:len(args)-1], false)
	if err != nil {
		return nil // half a line is rarely correct
	}
	env.NoAutostart = true
	for _, word := range env.candidates(ctx, before, last) {
		if strings.HasPrefix(word, last) {
			fmt.Fprintln(env.Stdout, word)
		}
	}
	return nil
}

func (env *Env) candidates(ctx context.Context, before []string, last string) (words []string) {
	if len(before) == 0 {
		if strings.HasPrefix(last, "-") {
			f := &flagSet{}
			env.register(f)
			return options(f)
		}
		for _, g := range groups() {
			for _, v := range g.verbs {
				words = append(words, v.name)
			}
		}
		return words
	}
	v := lookup(before[0])
	if v == nil {
		return nil
	}
	if strings.HasPrefix(last, "-") {
		described := *env
		described.describe = func(f *flagSet) { words = options(f) }
		v.run(ctx, &described, nil) // only describes itself
		return words
	}
	switch v.completes {
	case "image":
		var list []control.Image
		env.call(ctx, control.OpImages, nil, &list) // without a daemon there is nothing to offer
		for _, i := range list {
			words = append(words, i.Ref)
		}
	case "container":
		var list []control.Container
		env.call(ctx, control.OpPs, control.PsArgs{All: true}, &list)
		for _, c := range list {
			words = append(words, c.Name)
		}
	}
	return words
}

func options(f *flagSet) (words []string) {
	for _, o := range f.flags {
		if o.long != "" && o.help != "" {
			words = append(words, "--"+o.long)
		}
	}
	return append(words, "--help")
}
