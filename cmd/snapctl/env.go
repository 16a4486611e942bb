package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/term"
)

// An Env is what a verb works with: the standard streams and the global options.
type Env struct {
	Stdin, Stdout, Stderr *os.File
	Getenv                func(string) string

	Host        string // "unix://PATH"; "" is decided by socket
	Root, Run   string // of a daemon that has to be started; "" is the daemon's default
	NoAutostart bool
	JSON        bool
	Debug       bool

	describe func(*flagSet) // instead of parsing: tell what options there are
}

// Defaults of a daemon's directories.
const (
	defaultRoot = "/var/lib/snapfs"
	defaultRun  = "/run/snapfs"
	socketName  = "snapd.sock"
)

// globals parses the options before the verb.
func (env *Env) globals(args []string) ([]string, error) {
	f := &flagSet{}
	env.register(f)
	rest, err := f.parseArgs(args, false)
	if errors.Is(err, errHelp) {
		env.Stdout.WriteString(overview())
	}
	return rest, err
}

// register adds the global options, which every verb takes too.
func (env *Env) register(f *flagSet) {
	own := len(f.flags)
	f.text(&env.Host, "host", "unix://PATH", "daemon to talk to (or SNAPFS_HOST; default unix://"+defaultRun+"/"+socketName+")")
	f.text(&env.Root, "root", "DIR", "state directory of a daemon that has to be started (default "+defaultRoot+")")
	f.text(&env.Run, "run", "DIR", "directory of the daemon's sockets and mounts (default "+defaultRun+")")
	f.flag(&env.NoAutostart, "no-autostart", "fail when no daemon answers instead of starting one")
	f.flag(&env.JSON, "json", "print tables and records as JSON")
	f.flag(&env.Debug, "debug", "say more about what goes wrong")
	for _, x := range f.flags[own:] {
		x.global = true
	}
}

// socket returns the path of the daemon's socket.
func (env *Env) socket() (string, error) {
	host := env.Host
	if host == "" && env.Run == "" {
		host = env.Getenv("SNAPFS_HOST")
	}
	if host == "" {
		return filepath.Join(env.runDir(), socketName), nil
	}
	path, ok := strings.CutPrefix(host, "unix://")
	if !ok || !filepath.IsAbs(path) {
		return "", usageErrorf("host %q: want unix:// and an absolute path", host)
	}
	return path, nil
}

func (env *Env) runDir() string {
	if env.Run != "" {
		return env.Run
	}
	return defaultRun
}

// terminal says whether f is one.
func terminal(f *os.File) bool { return f != nil && term.IsTerminal(int(f.Fd())) }
