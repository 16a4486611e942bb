package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// A call is a plugin that was run.
type call struct {
	plugin, command, id, netns, args string
	stdin                            map[string]any
}

// world is a Host whose plugins are functions. Its namespaces are all the test's own.
type world struct {
	t    testing.TB
	root string
	dir  string // of configurations
	bin  string

	mu    sync.Mutex
	calls []call
	does  map[string]func(ctx context.Context, c call) (stdout, stderr string, err error) // "PLUGIN COMMAND"
	netns map[string]bool
	taken int // ports reserved
}

const someResult = `{"cniVersion":"1.0.0","interfaces":[{"name":"veth0","mac":"0a:00:00:00:00:01"},{"name":"eth0","mac":"0a:00:00:00:00:02","sandbox":"x"}],
	"ips":[{"interface":1,"address":"10.9.0.2/24","gateway":"10.9.0.1"},{"interface":1,"address":"fd00:9::2/64"}],
	"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0","gw":"fd00:9::1"}],"dns":{"nameservers":["10.9.0.53"],"search":["x.example"]}}`

func newWorld(t testing.TB, confs map[string]string, plugins ...string) *world {
	t.Helper()
	w := &world{
		t: t, root: filepath.Join(t.TempDir(), "cni"), dir: t.TempDir(), bin: t.TempDir(), netns: map[string]bool{},
		does: map[string]func(context.Context, call) (string, string, error){},
	}
	for name, text := range confs {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(w.dir, name)), 0o700), os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range plugins {
		if err := os.WriteFile(filepath.Join(w.bin, p), nil, 0o700); err != nil {
			t.Fatal(err)
		}
		w.does[p+" ADD"] = func(context.Context, call) (string, string, error) { return someResult, "", nil }
	}
	return w
}

func (w *world) open(change func(*Options)) *Service {
	w.t.Helper()
	o := Options{Root: w.root, Configs: w.dir, Plugins: []string{"/no/such", w.bin}, Timeout: time.Minute, Host: w}
	if change != nil {
		change(&o)
	}
	s, err := Open(w.t.Context(), o)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) RunPlugin(ctx context.Context, path string, stdin []byte, env []string, alone string) ([]byte, []byte, error) {
	c := call{plugin: filepath.Base(path)}
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		if p := map[string]*string{"CNI_COMMAND": &c.command, "CNI_CONTAINERID": &c.id, "CNI_NETNS": &c.netns, "CNI_ARGS": &c.args}[name]; p != nil {
			*p = value
		} else if !strings.HasPrefix(name, "CNI_") {
			w.t.Errorf("a plugin gets %s", kv)
		}
	}
	if alone != "cni/"+c.id {
		w.t.Errorf("%s is alone with %q", c.id, alone)
	}
	if err := json.Unmarshal(stdin, &c.stdin); err != nil {
		w.t.Error(err)
	}
	w.mu.Lock()
	w.calls = append(w.calls, c)
	do := w.does[c.plugin+" "+c.command]
	w.mu.Unlock()
	if do == nil {
		return nil, nil, nil
	}
	out, complaint, err := do(ctx, c)
	return []byte(out), []byte(complaint), err
}

func (w *world) on(what string, do func(context.Context, call) (string, string, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.does[what] = do
}

func (w *world) MakeNetns(_ context.Context, name string, _ *os.File) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.netns[name] = true
	return "/proc/self/ns/net", nil
}

func (w *world) DropNetns(_ context.Context, name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.netns, name)
	return nil
}

func (w *world) Reserve(ports []control.Port) (list []control.Binding, socks []*os.File, err error) {
	for _, p := range ports {
		for _, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			list = append(list, control.Binding{HostIP: a, Host: max(p.Host, 1), Container: p.Container, Proto: p.Proto})
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.taken += len(list)
	return list, nil, nil
}

// ran lists what was run, "PLUGIN COMMAND".
func (w *world) ran() (list []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.calls {
		list = append(list, c.plugin+" "+c.command)
	}
	w.calls = nil
	return list
}

// left says what is there of attachments.
func (w *world) left() string {
	w.t.Helper()
	records, err := filepath.Glob(filepath.Join(w.root, "*.json"))
	if err != nil {
		w.t.Fatal(err)
	}
	temp, _ := filepath.Glob(filepath.Join(w.root, "new-*"))
	results, _ := filepath.Glob(filepath.Join(w.root, "cache", "results", "*"))
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(records)+len(temp)+len(results)+len(w.netns) == 0 {
		return ""
	}
	return fmt.Sprint(records, temp, results, w.netns)
}

var id = strings.Repeat("ab", 32)

const blue = `{"cniVersion":"1.0.0","name":"blue","plugins":[
	{"type":"link","ipam":{"type":"host-local"},"capabilities":{"mac":true}},{"type":"ports","capabilities":{"portMappings":true,"none":false}}]}`

func alive(yes bool) func(string) bool { return func(string) bool { return yes } }

func TestLife(t *testing.T) {
	w := newWorld(t, map[string]string{"10.conflist": blue}, "link", "ports", "host-local")
	s := w.open(nil)
	q := Request{ID: id, Network: "blue", MAC: "0A:00:00:00:00:02", IPv4: netip.MustParseAddr("10.9.0.2"), Ports: []control.Port{{Host: 80, HostEnd: 80, Container: 8080, Proto: "tcp"}}}
	e, ns, err := s.Attach(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	ns.Close()
	want := control.Endpoint{
		ID: id, Serial: e.Serial, Network: "blue", Link: "veth0", MAC: "0a:00:00:00:00:02", IPv4: netip.MustParsePrefix("10.9.0.2/24"), Gateway4: netip.MustParseAddr("10.9.0.1"),
		IPv6: netip.MustParsePrefix("fd00:9::2/64"), Gateway6: netip.MustParseAddr("fd00:9::1"),
	}
	if e.Link != want.Link || e.MAC != want.MAC || e.IPv4 != want.IPv4 || e.Gateway4 != want.Gateway4 || e.IPv6 != want.IPv6 || e.Gateway6 != want.Gateway6 ||
		len(e.Routes) != 2 || e.DNS == nil || e.DNS.Servers[0] != "10.9.0.53" || len(e.Ports) != 2 {
		t.Errorf("endpoint %+v, want %+v", e, want)
	}
	if got := s.Endpoint(id); got == nil || got.IPv4 != e.IPv4 {
		t.Errorf("Endpoint = %+v", got)
	}
	w.mu.Lock()
	first, second := w.calls[0], w.calls[1]
	w.mu.Unlock()
	if first.id != id || first.netns != "/proc/self/ns/net" || first.args != "IgnoreUnknown=1;IP=10.9.0.2" || first.stdin["name"] != "blue" || first.stdin["prevResult"] != nil {
		t.Errorf("the first plugin was told %+v", first)
	}
	if fmt.Sprint(first.stdin["runtimeConfig"]) != "map[mac:0A:00:00:00:00:02]" {
		t.Errorf("the first plugin's capabilities: %v", first.stdin["runtimeConfig"])
	}
	if got := fmt.Sprint(second.stdin["runtimeConfig"]); !strings.Contains(got, "hostPort:80") || !strings.Contains(got, "containerPort:8080") || second.stdin["prevResult"] == nil {
		t.Errorf("the second plugin was told %v, %v", got, second.stdin["prevResult"])
	}
	// The configuration may change and go meanwhile: what was added is what is deleted.
	if err := os.Remove(filepath.Join(w.dir, "10.conflist")); err != nil {
		t.Fatal(err)
	}
	s.Release(id, 1) // of another one
	if w.ran(); s.Endpoint(id) == nil {
		t.Error("an endpoint is released by another one's serial")
	}
	s.Release(id, e.Serial)
	if ran := w.ran(); !slices.Equal(ran, []string{"ports DEL", "link DEL"}) || w.left() != "" || s.Endpoint(id) != nil {
		t.Errorf("the end: %v, left %s", ran, w.left())
	}
	s.Release(id, 0)
	if err := s.Close(); err != nil || len(w.ran()) > 0 {
		t.Errorf("a second end does something: %v", err)
	}
}

// A plugin that fails, lies or hangs: an error with its words, and DEL.
func TestBadPlugins(t *testing.T) {
	failed := errors.New("exit status 1")
	for name, row := range map[string]struct {
		do   func(context.Context, call) (string, string, error)
		want []string
	}{
		"error": {func(context.Context, call) (string, string, error) {
			return `{"cniVersion":"1.0.0","code":11,"msg":"no addresses","details":"of 10.9.0.0/24"}`, "noise", failed
		}, []string{"no addresses; of 10.9.0.0/24", "link ADD", "exit status 1"}},
		"complaint": {func(context.Context, call) (string, string, error) {
			return "", "line\x1b[31m one\nthe cable is cut\n", failed
		}, []string{"[31m one the cable is cut"}},
		"hangs": {func(ctx context.Context, _ call) (string, string, error) {
			<-ctx.Done()
			return "", "waiting for the moon", ctx.Err()
		}, []string{"has not ended in the 20ms", "waiting for the moon"}},
		"nothing": {func(context.Context, call) (string, string, error) { return "", "", nil }, []string{"its result"}},
		"no JSON": {func(context.Context, call) (string, string, error) { return "all is well", "", nil }, []string{"its result", "all is well"}},
		"version": {func(context.Context, call) (string, string, error) { return `{"cniVersion":"7.0.0"}`, "", nil }, []string{"7.0.0"}},
		"null": {func(context.Context, call) (string, string, error) {
			return `{"cniVersion":"0.4.0","ips":[null]}`, "", nil
		}, []string{"null in ips"}},
		"injects": {func(context.Context, call) (string, string, error) {
			return `{"cniVersion":"1.0.0","dns":{"nameservers":["1.1.1.1\nnameserver 6.6.6.6"]}}`, "", nil
		}, []string{"is no address"}},
		"zone": {func(context.Context, call) (string, string, error) {
			return `{"cniVersion":"1.0.0","dns":{"nameservers":["fe80::1%x\ny"]}}`, "", nil
		}, []string{"is no address"}},
		"search": {func(context.Context, call) (string, string, error) {
			return `{"cniVersion":"1.0.0","dns":{"search":["a b"]}}`, "", nil
		}, []string{"is no word"}},
		"too much": {func(context.Context, call) (string, string, error) {
			return `{"cniVersion":"1.0.0","routes":[` + strings.Repeat(`{"dst":"10.0.0.0/8"},`, 2000) + `{"dst":"10.0.0.0/8"}]}`, "", nil
		}, []string{"2001 routes"}},
		"address": {func(context.Context, call) (string, string, error) {
			return `{"cniVersion":"1.0.0","ips":[{"address":"0.0.0.0/0"}]}`, "", nil
		}, []string{"address 0.0.0.0/0"}},
		"other": {func(context.Context, call) (string, string, error) {
			return `{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.7/24"}]}`, "", nil
		}, []string{"have given it 10.9.0.7", "--ip"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, map[string]string{"10.conflist": `{"cniVersion":"1.0.0","name":"blue","plugins":[{"type":"link","ipam":{"type":"static"}}]}`}, "link", "static")
			w.on("link ADD", row.do)
			s := w.open(func(o *Options) {
				if name == "hangs" { // the others have time, however slow the machine is
					o.Timeout = 20 * time.Millisecond
				}
			})
			defer s.Close()
			_, _, err := s.Attach(t.Context(), Request{ID: id, Network: "blue", IPv4: netip.MustParseAddr("10.9.0.2")})
			for _, want := range row.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%v: without %q", err, want)
				}
			}
			if err != nil && (len(err.Error()) > 2000 || strings.ContainsAny(err.Error(), "\x1b\n")) {
				t.Errorf("the error has %d bytes, or others than text: %q", len(err.Error()), err)
			}
			if ran := w.ran(); !slices.Equal(ran, []string{"link ADD", "link DEL"}) || w.left() != "" || s.Endpoint(id) != nil {
				t.Errorf("ran %v, left %s", ran, w.left())
			}
		})
	}
}

// What cannot be undone is tried again, and keeps the container from being connected anew.
func TestUndoneLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, map[string]string{"10.conflist": blue}, "link", "ports", "host-local")
		s := w.open(nil)
		q := Request{ID: id, Network: "blue"}
		_, ns, err := s.Attach(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		ns.Close()
		w.on("link DEL", func(context.Context, call) (string, string, error) { return "", "not now", errors.New("exit status 1") })
		s.Release(id, 0)
		if s.Endpoint(id) != nil || w.left() == "" {
			t.Errorf("after a failed end: %+v, left %q", s.Endpoint(id), w.left())
		}
		w.ran()
		if _, _, err := s.Attach(t.Context(), q); err == nil || !strings.Contains(err.Error(), "not now") {
			t.Errorf("a second time: %v, want that of the first end", err)
		}
		if ran := w.ran(); slices.Contains(ran, "link ADD") {
			t.Errorf("ADD before DEL has succeeded: %v", ran)
		}
		time.Sleep(firstAgain + time.Second)
		synctest.Wait()
		if ran := w.ran(); !slices.Contains(ran, "link DEL") || w.left() == "" {
			t.Errorf("later: %v", ran)
		}
		w.on("link DEL", nil)
		time.Sleep(2*firstAgain + time.Second)
		synctest.Wait()
		if w.left() != "" {
			t.Errorf("in the end there is left %s", w.left())
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A daemon that was killed, while a plugin ran or later, is tidied up after by the next.
func TestCrash(t *testing.T) {
	for _, at := range []string{"link ADD", "ports ADD", "", "link DEL"} {
		t.Run("at "+at, func(t *testing.T) {
			w := newWorld(t, map[string]string{"10.conflist": blue}, "link", "ports", "host-local")
			old := w.open(nil)
			there, hang := make(chan struct{}, 10), make(chan struct{})
			if at != "" {
				w.on(at, func(context.Context, call) (string, string, error) {
					there <- struct{}{}
					<-hang
					return "", "", errors.New("killed")
				})
			}
			var ended sync.WaitGroup
			ended.Go(func() {
				_, ns, err := old.Attach(context.WithoutCancel(t.Context()), Request{ID: id, Network: "blue"})
				if err == nil {
					ns.Close()
				}
				if at == "link DEL" {
					old.Release(id, 0)
				}
				there <- struct{}{}
			})
			<-there // from here on, the old one is dead
			w.mu.Lock()
			delete(w.does, at)
			w.mu.Unlock()
			w.ran()
			if err := os.Remove(filepath.Join(w.dir, "10.conflist")); err != nil {
				t.Fatal(err)
			}
			s := w.open(nil)
			if at == "" {
				if s.Endpoint(id) == nil {
					t.Error("a container that lives has lost its endpoint")
				}
				if err := s.Reconcile(alive(true)); err != nil || s.Endpoint(id) == nil || len(w.ran()) > 0 {
					t.Errorf("a container that lives is looked after: %v", err)
				}
			}
			if err := s.Reconcile(alive(false)); err != nil {
				t.Fatal(err)
			}
			if ran := w.ran(); !slices.Equal(ran, []string{"ports DEL", "link DEL"}) || w.left() != "" {
				t.Errorf("ran %v, left %s", ran, w.left())
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			close(hang)
			ended.Wait()
			old.Close()
		})
	}
}

// An attachment of which ADD was not heard of to its end is undone although its container lives: it waits to be started.
func TestUnfinished(t *testing.T) {
	w := newWorld(t, map[string]string{"10.conflist": blue}, "link", "ports", "host-local")
	s := w.open(nil)
	a := &attachment{turn: make(chan struct{}, 1)}
	list, err := s.load("blue")
	if err != nil {
		t.Fatal(err)
	}
	a.ID, a.Network, a.List = id, "blue", list.Bytes
	if err := s.enter(a); err != nil {
		t.Fatal(err)
	}
	s = w.open(nil)
	if s.Endpoint(id) != nil {
		t.Error("it has an endpoint")
	}
	if err := s.Reconcile(alive(true)); err != nil || w.left() != "" {
		t.Errorf("%v, left %s", err, w.left())
	}
	for _, c := range w.calls {
		if c.netns != "" { // it never had one, or it went with the machine
			t.Errorf("%s %s is told of the namespace %q", c.plugin, c.command, c.netns)
		}
	}
	s.Close()
}

// A container that is started while the daemon looks after what the last one has
// left keeps its connection; its ports are nobody else's after a daemon's death, from the beginning.
func TestReconcileBesideAttach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, map[string]string{"10.conflist": blue}, "link", "ports", "host-local")
		if err := errors.Join(os.Mkdir(w.root, 0o700), os.WriteFile(filepath.Join(w.root, "new-1"), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		s := w.open(nil)
		onward := make(chan struct{})
		w.on("link ADD", func(context.Context, call) (string, string, error) {
			<-onward
			return someResult, "", nil
		})
		var both sync.WaitGroup
		both.Go(func() {
			_, ns, err := s.Attach(t.Context(), Request{ID: id, Network: "blue", Ports: []control.Port{{Host: 80, HostEnd: 80, Container: 8080, Proto: "tcp"}}})
			if err != nil {
				t.Error(err)
				return
			}
			ns.Close()
		})
		synctest.Wait()
		both.Go(func() {
			if err := s.Reconcile(alive(true)); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		close(onward)
		both.Wait()
		if ran := w.ran(); !slices.Equal(ran, []string{"link ADD", "ports ADD"}) || s.Endpoint(id) == nil {
			t.Errorf("ran %v, and the endpoint is %+v", ran, s.Endpoint(id))
		}
		if w.taken != 2 {
			t.Errorf("%d ports were reserved, want the 2 of the container, once", w.taken)
		}
		next := w.open(nil)
		if w.taken == 2 {
			t.Error("the next daemon has not reserved its ports before anybody can ask it for some")
		}
		next.Release(id, 0)
		if w.left() != "" {
			t.Errorf("left %s", w.left())
		}
		if err := errors.Join(next.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	})
}

func TestCollect(t *testing.T) {
	const green = `{"cniVersion":"1.1.0","name":"green","plugins":[{"type":"link"}]}`
	for name, row := range map[string]struct {
		conf    string
		collect bool
		want    []string
	}{
		"asked for": {green, true, []string{"link DEL", "link GC"}},
		"not":       {green, false, []string{"link DEL"}},
		"old":       {strings.Replace(green, "1.1.0", "1.0.0", 1), true, []string{"link DEL"}},
		"forbidden": {strings.Replace(green, `"name"`, `"disableGC":true,"name"`, 1), true, []string{"link DEL"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, map[string]string{"g.conflist": row.conf}, "link")
			w.on("link ADD", func(context.Context, call) (string, string, error) {
				return strings.Replace(someResult, "1.0.0", "1.1.0", 1), "", nil
			})
			s := w.open(nil)
			other := strings.Repeat("cd", 32)
			for _, i := range []string{id, other} {
				_, ns, err := s.Attach(t.Context(), Request{ID: i, Network: "green"})
				if err != nil {
					t.Fatal(err)
				}
				ns.Close()
			}
			w.ran()
			s = w.open(func(o *Options) { o.Collect = row.collect })
			if err := s.Reconcile(func(i string) bool { return i == other }); err != nil {
				t.Fatal(err)
			}
			w.mu.Lock()
			last := w.calls[len(w.calls)-1]
			w.mu.Unlock()
			if ran := w.ran(); !slices.Equal(ran, row.want) {
				t.Errorf("ran %v, want %v", ran, row.want)
			}
			if valid := fmt.Sprint(last.stdin["cni.dev/valid-attachments"]); last.command == "GC" && (!strings.Contains(valid, other) || strings.Contains(valid, id)) {
				t.Errorf("in use: %s", valid)
			}
			s.Release(other, 0)
			s.Close()
		})
	}
}

func TestConfigurations(t *testing.T) {
	w := newWorld(t, map[string]string{
		"10.conflist":    blue,
		"20.conf":        `{"cniVersion":"0.4.0","name":"old","type":"link"}`,
		"30.conflist":    `{"cniVersion":"1.1.0","name":"parts"}`,
		"parts/a.conf":   `{"type":"link"}`,
		"parts/b.conf":   `{"type":"ports"}`,
		"40.conflist":    `{"name":`,
		"50.conflist":    `{"cniVersion":"1.0.0","name":"../up","plugins":[{"type":"link"}]}`,
		"60.conflist":    `{"cniVersion":"1.0.0","name":"path","plugins":[{"type":"../../bin/sh"}]}`,
		"70.conflist":    `{"cniVersion":"1.0.0","name":"empty","plugins":[]}`,
		"80.conflist":    `{"cniVersion":"1.0.0","name":"big","plugins":[{"type":"link","x":"` + strings.Repeat("x", maxConfig) + `"}]}`,
		"90.conflist":    `{"cniVersion":"1.0.0","name":"gone","plugins":[{"type":"nothing"}]}`,
		"ignored.backup": blue,
	}, "link", "ports")
	if err := unix.Mkfifo(filepath.Join(w.dir, "99.conflist"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := w.open(nil)
	defer s.Close()
	for name, n := range map[string]int{"blue": 2, "old": 1, "parts": 2} {
		list, err := s.load(name)
		if err != nil || len(list.Plugins) != n || list.Name != name {
			t.Errorf("%s: %+v, %v", name, list, err)
			continue
		}
		again, err := parseList(list.Bytes) // as a record has it
		if err != nil || len(again.Plugins) != n || again.CNIVersion != list.CNIVersion {
			t.Errorf("%s from its record: %+v, %v", name, again, err)
		}
	}
	err := s.Check(Request{ID: id, Network: "red"})
	for _, want := range []string{w.dir, "blue, parts, gone, old", "40.conflist: ", "50.conflist: name", "60.conflist: plugin", "70.conflist: ", "80.conflist: larger than", "99.conflist: it is no regular file"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: without %q", err, want)
		}
	}
	if e, ok := errors.AsType[*control.Error](err); !ok || e.Code != control.CodeNotFound {
		t.Errorf("%v is not that it is not found", err)
	}
	for _, name := range []string{"", "..", "a/b", "a\nb", "-a", strings.Repeat("a", 300)} {
		if CheckName(name) == nil {
			t.Errorf("%.20q can be a network's name", name)
		}
	}
	if _, _, err := s.Attach(t.Context(), Request{ID: id, Network: "gone"}); err == nil || !strings.Contains(err.Error(), `plugin "nothing" is not in /no/such, `+w.bin) {
		t.Errorf("without its plugin: %v", err)
	}
}

func TestArguments(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	port := []control.Binding{{Host: 1, Container: 2, Proto: "udp"}}
	for name, row := range map[string]struct {
		plugins    string
		q          Request
		ports      []control.Binding
		args, caps string
		err        string
	}{
		"nothing":            {`{"type":"x"}`, Request{}, nil, "[]", "map[]", ""},
		"ports":              {`{"type":"x"}`, Request{}, port, "", "", "--publish: no plugin of the network n declares the capability portMappings"},
		"capability is off":  {`{"type":"x","capabilities":{"portMappings":false}}`, Request{}, port, "", "", "portMappings"},
		"two addresses":      {`{"type":"x","capabilities":{"ips":true}}`, Request{IPv4: v4, IPv6: v6}, nil, "[]", "map[ips:[10.0.0.1 fd00::1]]", ""},
		"one by argument":    {`{"type":"x","ipam":{"type":"static"}}`, Request{IPv6: v6}, nil, "[[IgnoreUnknown 1] [IP fd00::1]]", "map[]", ""},
		"two by argument":    {`{"type":"x","ipam":{"type":"static"}}`, Request{IPv4: v4, IPv6: v6}, nil, "", "", "--ip, --ip6"},
		"an address of DHCP": {`{"type":"x","ipam":{"type":"dhcp"}}`, Request{IPv4: v4}, nil, "", "", "capability ips"},
		"MAC":                {`{"type":"x"},{"type":"tuning","capabilities":{"mac":true}}`, Request{MAC: "m"}, nil, "[]", "map[mac:m]", ""},
		"MAC by argument":    {`{"type":"bridge"}`, Request{MAC: "m"}, nil, "[[IgnoreUnknown 1] [MAC m]]", "map[]", ""},
		"no MAC":             {`{"type":"ptp"}`, Request{MAC: "m"}, nil, "", "", "--mac-address"},
	} {
		list, err := parseList([]byte(`{"cniVersion":"1.0.0","name":"n","plugins":[` + row.plugins + `]}`))
		if err != nil {
			t.Fatal(err)
		}
		args, caps, err := arguments(list, row.q, row.ports)
		if row.err != "" {
			if err == nil || !strings.Contains(err.Error(), row.err) {
				t.Errorf("%s: %v, want an error with %q", name, err, row.err)
			}
			continue
		}
		if err != nil || fmt.Sprint(args) != row.args || fmt.Sprint(caps) != row.caps {
			t.Errorf("%s: %v, %v, %v; want %s, %s", name, args, caps, err, row.args, row.caps)
		}
	}
}

// A hardware address is the same however it is written.
func TestGranted(t *testing.T) {
	e := &control.Endpoint{MAC: "02:00:00:00:00:0a"}
	for mac, want := range map[string]bool{"": true, "02-00-00-00-00-0A": true, "0200.0000.000a": true, "02:00:00:00:00:0b": false} {
		if err := granted(e, Request{MAC: mac}); (err == nil) != want {
			t.Errorf("%q: %v", mac, err)
		}
	}
	if err := granted(&control.Endpoint{}, Request{MAC: "02:00:00:00:00:0a"}); err == nil || !strings.Contains(err.Error(), "none that they tell") {
		t.Errorf("a plugin that tells no address: %v", err)
	}
}

// Records of others, and what is left of them, do not keep the daemon from starting.
func TestStrangeRecords(t *testing.T) {
	w := newWorld(t, nil)
	if err := os.MkdirAll(w.root, 0o700); err != nil {
		t.Fatal(err)
	}
	for i, text := range []string{"", "{", "null", "[]", `{"ID":"x"}`, `{"ID":"` + fmt.Sprintf("%064d", 5) + `","Network":"x","List":{"name":1}}`} {
		if err := os.WriteFile(filepath.Join(w.root, fmt.Sprintf("%064d.json", i)), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := w.open(nil)
	if err := errors.Join(s.Reconcile(alive(false)), s.Close()); err != nil || len(w.ran()) > 0 {
		t.Errorf("%v", err)
	}
}
