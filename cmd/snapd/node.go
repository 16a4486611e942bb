package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/snapfs/snapfs/internal/node"
	"github.com/snapfs/snapfs/internal/supervisor"
)

// nodeUsage is the help of snapd containerd, which snapctl containerd runs.
const nodeUsage = `usage: snapctl containerd config|check [flags]

config prints what a containerd needs in its configuration to use snapd; with
--write it merges that into the file. check finds out what is wrong on this node.

`

// A nodeCommand is one run of snapd containerd.
type nodeCommand struct {
	stdout, stderr io.Writer

	write, json      bool
	file, program    string
	version, address string
	name             string
	cri, content     bool
	entry            ContainerdConfig
	c                Config
}

// runNode is snapd containerd. It returns the exit status: 0, 1 for a failure,
// 2 for a misuse.
func runNode(args []string, stdout, stderr io.Writer) int {
	n := &nodeCommand{stdout: stdout, stderr: stderr}
	verb, err := n.parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "snapctl containerd: %v\n", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if verb == "check" {
		return n.check(ctx)
	}
	if err := n.config(ctx); err != nil {
		fmt.Fprintf(stderr, "snapctl containerd config: %v\n", err)
		return 1
	}
	return 0
}

func (n *nodeCommand) parse(args []string) (verb string, err error) {
	f := flag.NewFlagSet("containerd", flag.ContinueOnError)
	f.SetOutput(n.stderr)
	f.BoolVar(&n.write, "write", false, "config: merge it into the file")
	f.BoolVar(&n.json, "json", false, "check: print JSON")
	f.StringVar(&n.file, "config", "", "containerd's configuration `FILE` (default "+node.DefaultConfig+")")
	f.StringVar(&n.program, "containerd", "containerd", "containerd's `PROGRAM`")
	f.StringVar(&n.version, "containerd-version", "", "config: for this `VERSION`, without asking the program")
	f.StringVar(&n.address, "address", "", "check: containerd's `SOCKET` (default as configured)")
	f.StringVar(&n.name, "name", node.Name, "`NAME` of the snapshotter in containerd")
	f.BoolVar(&n.cri, "cri", false, "make it CRI's snapshotter, for Kubernetes; check: expect that")
	f.BoolVar(&n.content, "content", false, "have snapd as the content store, so that lazily pulled images can be pushed and exported; check: expect that")
	entry := f.String("entry", defaultName, "`NAME` of the [[containerd]] table in snapd's configuration")
	file := f.String("snapd-config", "", "snapd's configuration `FILE` (default "+defaultConfigFile+", if it exists)")
	root := f.String("root", "", "snapd's state `DIR`")
	runDir := f.String("run", "", "snapd's `DIR` of sockets and mounts")
	f.Usage = func() {
		fmt.Fprint(n.stderr, nodeUsage)
		f.PrintDefaults()
	}
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		verb, args = args[0], args[1:]
	}
	if err := f.Parse(args); err != nil {
		return "", err
	}
	switch {
	case verb != "config" && verb != "check":
		return "", fmt.Errorf("%q: want config or check (see --help)", verb)
	case f.NArg() > 0:
		return "", fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if n.c, err = LoadConfig(*file); err != nil {
		return "", err
	}
	n.c.Root, n.c.Run = cmp.Or(*root, n.c.Root), cmp.Or(*runDir, n.c.Run)
	if err := n.c.Validate(); err != nil {
		return "", err
	}
	all := n.c.containerds()
	i := slices.IndexFunc(all, func(e ContainerdConfig) bool { return e.Name == *entry })
	if i < 0 {
		return "", fmt.Errorf("snapd's configuration has no [[containerd]] with name = %q", *entry)
	}
	n.entry = all[i]
	return verb, nil
}

func (n *nodeCommand) options(v node.Version) node.Options {
	return node.Options{Version: v, Name: n.name, Socket: n.entry.Socket, Root: n.c.Root, CRI: n.cri, Content: n.content}
}

func (n *nodeCommand) config(ctx context.Context) error {
	var v node.Version
	var err error
	if n.version != "" {
		v, err = node.ParseVersion(n.version)
	} else if v, err = (node.Node{Program: n.program, Run: runProgram}).FindVersion(ctx); err != nil {
		err = fmt.Errorf("%w; say with --containerd where it is, or with --containerd-version which", err)
	}
	if err != nil {
		return err
	}
	o := n.options(v)
	if !n.write {
		text, err := node.Stanza(o)
		if err != nil {
			return err
		}
		_, err = n.stdout.Write(text)
		return err
	}
	return n.merge(ctx, cmp.Or(n.file, node.DefaultConfig), o)
}

// merge writes the file.
func (n *nodeCommand) merge(ctx context.Context, file string, o node.Options) error {
	old, imported, err := node.ReadConfig(file)
	if err != nil {
		return err
	}
	text, err := node.Merge(old, imported, o)
	if err != nil {
		if e, ok := errors.AsType[*node.LineError](err); ok && e.File == "" {
			e.File = file
		}
		return err
	}
	if bytes.Equal(text, old) {
		fmt.Fprintf(n.stdout, "%s says all that is needed\n", file)
		return nil
	}
	try := func(tmp string) error {
		_, err := runProgram(ctx, n.program, "--config", tmp, "config", "dump")
		return err
	}
	if n.version != "" {
		try = nil // for another machine
	}
	kept, err := node.Replace(file, text, time.Now(), try)
	if err != nil {
		return err
	}
	fmt.Fprintf(n.stdout, "%s is changed; restart containerd\n", file)
	if kept != "" {
		fmt.Fprintf(n.stdout, "what was there is kept as %s\n", kept)
	}
	if n.content && n.version == "" {
		n.hint(ctx, file)
	}
	return nil
}

// hint says where the content is that containerd has had until now.
func (n *nodeCommand) hint(ctx context.Context, file string) {
	dump, err := runProgram(ctx, n.program, "--config", file, "config", "dump")
	if err != nil {
		return // it was tried before
	}
	own := node.OwnContent(node.RootOf(dump))
	if n.entry.Content == own {
		return
	}
	if found, err := filepath.Glob(filepath.Join(own, "blobs", "*", "*")); err == nil && len(found) > 0 {
		fmt.Fprintf(n.stdout, "containerd's own content store has %d blobs. To keep them in use, before that:\n\n  # %s\n  [[containerd]]\n  content = %q\n\n", len(found), defaultConfigFile, own)
	}
}

func (n *nodeCommand) check(ctx context.Context) int {
	of := node.Node{
		Options: n.options(node.Version{}), Program: n.program, Config: n.file, Address: n.address,
		Control: supervisor.Socket(n.c.Run), Run: runProgram,
	}
	if of.Address == "" && n.entry.Address != "" {
		of.Address = n.entry.Address
	}
	if fi, err := os.Stat("/run/systemd/system"); err == nil && fi.IsDir() { // sd_booted(3)
		of.Units = []string{"snapfs.service", "snapfs.socket"} // packaging/systemd
	}
	all := node.Check(ctx, of)
	if n.json {
		raw, err := json.MarshalIndent(all, "", "  ")
		if err != nil {
			panic(err) // findings are strings
		}
		fmt.Fprintf(n.stdout, "%s\n", raw)
	}
	status := 0
	for _, f := range all {
		if f.Level == node.Fail {
			status = 1
		}
		if n.json {
			continue
		}
		line := fmt.Sprintf("%-4s  %s", f.Level, f.What)
		if f.Fix != "" {
			line += "\n      → " + f.Fix
		}
		fmt.Fprintln(n.stdout, line)
	}
	return status
}

// runProgram returns what a program prints. Its error has the end of what it says.
func runProgram(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out, say tail
	out.max, say.max = 16<<20, 4<<10
	cmd.Stdout, cmd.Stderr = &out, &say
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if text := strings.TrimSpace(say.String()); err != nil && text != "" {
		err = fmt.Errorf("%w: %s", err, text)
	}
	return out.Bytes(), err
}

// tail keeps the end of what is written to it.
type tail struct {
	bytes.Buffer
	max int
}

func (t *tail) Write(p []byte) (int, error) {
	t.Buffer.Write(p)
	if n := t.Len() - t.max; n > 0 {
		t.Next(n)
	}
	return len(p), nil
}
