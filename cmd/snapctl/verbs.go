package main

import (
	"context"
	"fmt"
	"strings"
)

// A verb is a command of snapctl.
type verb struct {
	name  string
	about string // one line
	run   func(ctx context.Context, env *Env, args []string) error
	// program says that the exit status is that of a program: snapctl's own failures then are 125, as Docker's.
	program bool
	// completes is what its arguments are: "image", "container" or "".
	completes string
}

func (v *verb) failure() int {
	if v.program {
		return 125
	}
	return 1
}

// groups are the verbs in the order of the overview.
func groups() []struct {
	title string
	verbs []verb
} {
	return []struct {
		title string
		verbs []verb
	}{
		{"Containers", []verb{
			{name: "run", about: "Start a container on an image, which need not be local", run: run, program: true, completes: "image"},
			{name: "create", about: "Make a container without starting it", run: create, program: true, completes: "image"},
			{name: "start", about: "Start containers that were created or have ended", run: start, program: true, completes: "container"},
			{name: "exec", about: "Run a further program in a container", run: execute, program: true, completes: "container"},
			{name: "attach", about: "Connect this terminal to a container", run: attach, program: true, completes: "container"},
			{name: "ps", about: "List containers", run: ps},
			{name: "port", about: "Show where a container's ports are published", run: port, completes: "container"},
			{name: "logs", about: "Show what a container has written", run: logs, completes: "container"},
			{name: "top", about: "Show what is waited for; or list the processes of a container", run: top, completes: "container"},
			{name: "stop", about: "End containers, politely at first", run: stop, completes: "container"},
			{name: "kill", about: "Send containers a signal", run: kill, completes: "container"},
			{name: "pause", about: "Freeze containers", run: pause, completes: "container"},
			{name: "unpause", about: "Let frozen containers go on", run: unpause, completes: "container"},
			{name: "wait", about: "Wait for containers to end and print their exit statuses", run: wait, completes: "container"},
			{name: "rm", about: "Remove containers", run: rm, completes: "container"},
		}},
		{"Images", []verb{
			{name: "pull", about: "Make an image known, and optionally local", run: pull},
			{name: "push", about: "Send an image to a registry", run: push, completes: "image"},
			{name: "images", about: "List images", run: images},
			{name: "rmi", about: "Remove images", run: rmi, completes: "image"},
			{name: "tag", about: "Give an image a further name", run: tag, completes: "image"},
			{name: "convert", about: "Make an image that can start lazily anywhere", run: convert, completes: "image"},
			{name: "index", about: "Make, publish and sign what lets any image start lazily", run: index, completes: "image"},
			{name: "mount", about: "Mount an image, or list such mounts", run: mount, completes: "image"},
			{name: "umount", about: "Unmount images", run: umount},
			{name: "explain", about: "Tell how an image or a container started, and why so", run: explainStart, completes: "container"},
			{name: "inspect", about: "Show all about containers and images", run: inspect, completes: "container"},
		}},
		{"Daemon", []verb{
			{name: "info", about: "Show how this machine mounts images", run: info},
			{name: "stat", about: "Show counters", run: stat},
			{name: "pool", about: "Show what is kept ready for containers to come", run: pool},
			{name: "events", about: "Show what has happened, and what does", run: showEvents},
			{name: "daemon", about: "Start, stop or restart the daemon", run: daemon},
			{name: "containerd", about: "Let containerd use the daemon: configure it, and find out what is wrong", run: containerd},
			{name: "version", about: "Show versions", run: showVersion},
			{name: "completion", about: "Print completions for a shell", run: completion},
			{name: "help", about: "Show help on a verb", run: help},
		}},
	}
}

// hidden are the verbs that snapd uses, and the OCI runtime, which is for
// programs. They see no global options, and signals are their own affair.
var hidden = map[string]func(context.Context, *Env, []string) error{
	"runtime":    ociRuntime("snapctl runtime"),
	"monitor":    runMonitor,
	"keeper":     runKeeper,
	"__complete": complete,
}

func lookup(name string) *verb {
	for _, g := range groups() {
		for i := range g.verbs {
			if g.verbs[i].name == name {
				return &g.verbs[i]
			}
		}
	}
	return nil
}

// overview is the text of snapctl --help.
func overview() string {
	var b strings.Builder
	b.WriteString("Usage: snapctl [OPTIONS] COMMAND [ARG...]\n\nRun containers on OCI images that are fetched while they are in use.\n")
	for _, g := range groups() {
		fmt.Fprintf(&b, "\n%s:\n", g.title)
		for _, v := range g.verbs {
			fmt.Fprintf(&b, "  %-11s %s\n", v.name, v.about)
		}
	}
	f := &flagSet{}
	new(Env).register(f)
	writeOptions(&b, "\nGlobal options:\n", f.flags, true)
	b.WriteString("\nExample:\n  snapctl run -it --rm docker.io/library/debian:stable bash\n\nsnapctl COMMAND --help says more about a command.\n")
	return b.String()
}

func help(ctx context.Context, env *Env, args []string) error {
	f := &flagSet{usage: "help [COMMAND]", about: "Show help on a command.", example: "snapctl help run"}
	rest, err := f.parse(env, args, 0, 1)
	if err != nil {
		return err
	}
	if len(rest) == 0 {
		_, err := env.Stdout.WriteString(overview())
		return err
	}
	v := lookup(rest[0])
	if v == nil {
		return usageErrorf("unknown command %q; see snapctl --help", rest[0])
	}
	return v.run(ctx, env, []string{"--help"})
}
