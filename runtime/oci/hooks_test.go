package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// hook is a program of the host's that appends its name, the state it gets and what sh finds out to a log.
func (b *bench) hook(name, more string) specs.Hook {
	script := fmt.Sprintf(`s=$(cat); echo "%s $s" >>%s/log; %s`, name, b.bundle, more)
	return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}}
}

// hookLog returns the names in the log and the states.
func (b *bench) hookLog() (names []string, states map[string]specs.State) {
	b.t.Helper()
	log, err := os.ReadFile(filepath.Join(b.bundle, "log"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		b.t.Fatal(err)
	}
	states = map[string]specs.State{}
	for line := range strings.Lines(string(log)) {
		name, text, _ := strings.Cut(line, " ")
		var s specs.State
		must(b.t, json.Unmarshal([]byte(text), &s))
		names, states[name] = append(names, name), s
	}
	return names, states
}

// allHooks are hooks of all six kinds.
func (b *bench) allHooks() *specs.Hooks {
	return &specs.Hooks{
		//lint:ignore SA1019 a deprecated hook is one nevertheless
		Prestart: []specs.Hook{b.hook("prestart", ":")}, CreateRuntime: []specs.Hook{b.hook("createRuntime", ":")}, CreateContainer: []specs.Hook{b.hook("createContainer", ":")},
		StartContainer: []specs.Hook{{Path: "/inside", Args: []string{"inside", "save", "/hooked", "startContainer"}}},
		Poststart:      []specs.Hook{b.hook("poststart", ":")}, Poststop: []specs.Hook{b.hook("poststop", ":")},
	}
}

func TestHooks(t *testing.T) {
	b := newBench(t, "cat", "/hooked", ";", "trap")
	b.spec.Annotations = map[string]string{"k": "v"}
	b.spec.Hooks = b.allHooks()
	b.create()
	if names, states := b.hookLog(); strings.Join(names, " ") != "prestart createRuntime createContainer" {
		t.Errorf("create ran %v, want prestart, createRuntime, createContainer", names)
	} else if s := states["createRuntime"]; s.Status != specs.StateCreating || s.Pid != b.state().Pid || s.ID != b.id || s.Bundle != b.bundle || s.Annotations["k"] != "v" || s.Version != specs.Version {
		t.Errorf("createRuntime got %+v", s)
	}
	b.ok("start", b.id)
	if names, states := b.hookLog(); len(names) != 4 || names[3] != "poststart" || states["poststart"].Status != specs.StateRunning {
		t.Errorf("start ran %v with %+v, want poststart", names, states["poststart"])
	}
	pid := b.state().Pid
	out := b.end()
	b.ok("delete", b.id)
	names, states := b.hookLog()
	if len(names) != 5 || names[4] != "poststop" || states["poststop"].Status != specs.StateStopped {
		t.Errorf("delete ran %v with %+v, want poststop", names, states["poststop"])
	}
	// The hook inside ran before the program, as the process's user, with the container's files.
	var got specs.State
	line, ok := strings.CutPrefix(out, "startContainer 0 ")
	if err := json.Unmarshal([]byte(strings.TrimSuffix(line, "ready\n")), &got); !ok || err != nil || got.Status != specs.StateCreated || got.Pid != pid {
		t.Errorf("startContainer: %q, %v", out, err)
	}
}

// TestHooksOfRun: the same order in one call.
func TestHooksOfRun(t *testing.T) {
	b := newBench(t, "cat", "/hooked")
	b.spec.Hooks = b.allHooks()
	wants(t, b.runs(), "startContainer 0 {")
	names, _ := b.hookLog()
	if got := strings.Join(names, " "); got != "prestart createRuntime createContainer poststart poststop" {
		t.Errorf("run ran %q", got)
	}
}

// TestHookNamespaces: where hooks run, and what they see.
func TestHookNamespaces(t *testing.T) {
	b := newBench(t, "ls", "/mnt", ";", "trap")
	must(t, os.Mkdir(filepath.Join(b.bundle, "rootfs/mnt"), 0o755))
	out := filepath.Join(b.bundle, "ns")
	look := func(name string) string {
		return fmt.Sprintf("echo %s $(readlink /proc/self/ns/net /proc/self/ns/mnt) >>%s", name, out)
	}
	// A createContainer hook may mount below the root, by its path on the host, for the container alone.
	inside := look("createContainer") + fmt.Sprintf("; mount -t tmpfs none %[1]s/rootfs/mnt && touch %[1]s/rootfs/mnt/mounted", b.bundle)
	b.spec.Hooks = &specs.Hooks{
		CreateRuntime:   []specs.Hook{b.hook("a", look("createRuntime"))},
		CreateContainer: []specs.Hook{b.hook("b", inside)},
	}
	b.create()
	b.ok("start", b.id)
	pid := b.state().Pid
	var lines [2][]string
	text, err := os.ReadFile(out)
	must(t, err)
	for i, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		lines[i] = strings.Fields(line)
	}
	for i, ns := range []string{"net", "mnt"} {
		host, err := os.Readlink("/proc/self/ns/" + ns)
		must(t, err)
		own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		must(t, err)
		if lines[0][i+1] != host || lines[1][i+1] != own {
			t.Errorf("%s namespaces %v, want the host's %s for createRuntime, the container's %s for createContainer", ns, lines, host, own)
		}
	}
	if left, _ := os.ReadDir(filepath.Join(b.bundle, "rootfs/mnt")); len(left) > 0 {
		t.Errorf("the hook's mount is on the host: %v", left)
	}
	wants(t, b.end(), "mounted")
}

// TestHookFails: what each kind's failure means. What was made is gone, and poststop has run.
func TestHookFails(t *testing.T) {
	bad := func(b *bench, name string) []specs.Hook {
		return []specs.Hook{b.hook(name, "echo no good >&2; exit 3")}
	}
	for _, c := range []struct {
		name string
		set  func(*bench, *specs.Hooks)
		at   string // the call that fails
	}{
		//lint:ignore SA1019 a deprecated hook is one nevertheless
		{"prestart", func(b *bench, h *specs.Hooks) { h.Prestart = bad(b, "x") }, "create"},
		{"createRuntime", func(b *bench, h *specs.Hooks) { h.CreateRuntime = bad(b, "x") }, "create"},
		{"createContainer", func(b *bench, h *specs.Hooks) { h.CreateContainer = bad(b, "x") }, "create"},
		{"startContainer", func(b *bench, h *specs.Hooks) {
			h.StartContainer = []specs.Hook{{Path: "/inside", Args: []string{"inside", "stderr", "no good", ";", "exit", "3"}}}
		}, "start"},
		{"poststart", func(b *bench, h *specs.Hooks) { h.Poststart = bad(b, "x") }, "start"},
		{"poststop", func(b *bench, h *specs.Hooks) { h.Poststop = append(bad(b, "x"), h.Poststop...) }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, "sleep")
			b.spec.Hooks = &specs.Hooks{Poststop: []specs.Hook{b.hook("poststop", ":")}}
			c.set(b, b.spec.Hooks)
			if c.at == "create" {
				b.write()
				b.fails(1, "no good", "create", "--bundle", b.bundle, b.id)
				b.fails(1, "does not exist", "state", b.id)
			} else {
				b.create()
				if c.at == "start" {
					b.fails(1, "no good", "start", b.id)
					b.waitFor(specs.StateStopped)
				}
				b.ok("delete", "--force", b.id)
			}
			if names, _ := b.hookLog(); len(names) == 0 || names[len(names)-1] != "poststop" {
				t.Errorf("hooks %v, want poststop last", names)
			}
		})
	}
}

// TestHookKilled: what hooks have made is taken away though the runtime was killed in one.
func TestHookKilled(t *testing.T) {
	for _, c := range []struct{ verb, at string }{{"create", "createRuntime"}, {"run", "createRuntime"}, {"run", "poststart"}} {
		b := newBench(t, "sleep")
		begun, held := filepath.Join(b.bundle, "begun"), filepath.Join(b.bundle, "held")
		must(t, unix.Mkfifo(begun, 0o600))
		must(t, unix.Mkfifo(held, 0o600))
		hold, err := os.OpenFile(held, os.O_RDWR, 0)
		must(t, err)
		defer hold.Close() // the hook ends then
		b.spec.Hooks = &specs.Hooks{Poststop: []specs.Hook{b.hook("poststop", ":")}}
		first := []specs.Hook{b.hook(c.at, "echo >"+begun+"; read x <"+held)}
		if c.at == "poststart" {
			b.spec.Hooks.Poststart = first
		} else {
			b.spec.Hooks.CreateRuntime = first
		}
		b.write()
		cmd := b.cmd(c.verb, "--bundle", b.bundle, b.id)
		must(t, cmd.Start())
		f, err := os.Open(begun) // waits until the hook runs
		must(t, err)
		defer f.Close()
		must(t, cmd.Process.Kill())
		_ = cmd.Wait()
		b.ok("delete", "--force", b.id)
		if names, _ := b.hookLog(); strings.Join(names, " ") != c.at+" poststop" {
			t.Errorf("%s: hooks %v, want %s, poststop", c.verb, names, c.at)
		}
		b.gone()
	}
}

func TestHookTimeout(t *testing.T) {
	one := 1
	for _, kind := range []string{"createRuntime", "createContainer"} {
		b := newBench(t, "sleep")
		h := specs.Hook{Path: "/bin/sleep", Args: []string{"sleep", "1000"}, Timeout: &one}
		b.spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{h}}
		if kind == "createContainer" {
			b.spec.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{h}}
		}
		b.write()
		b.fails(1, "its timeout of 1s", "create", "--bundle", b.bundle, b.id)
	}
}
