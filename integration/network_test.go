package integration

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapfs/snapfs/internal/network/networktest"
)

// networkMachine is a machine with a bridge of its own. config are further tables.
func networkMachine(t *testing.T, config ...string) *machine {
	t.Helper()
	m := startMachine(t, fmt.Sprintf("%s\n[network]\nbridge = 'sfb%d'", strings.Join(config, "\n"), bridges.Add(1)))
	t.Cleanup(func() { // after a failure
		for _, id := range strings.Fields(m.ok("ps", "-a", "-q")) {
			m.ok("rm", "-f", id)
		}
	})
	return m
}

var bridges atomic.Int32

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// netImage is an image with the tests' program.
func netImage(t *testing.T, hub *hub, name string) string {
	t.Helper()
	return hub.put(t, name, newImage(t, eStargz, []file{dir("proc"), dir("sys"), dir("dev"), dir("tmp"), dir("etc"), inside(t)}))
}

// serves waits until the program of "inside serve" listens.
func (m *machine) serves(names ...string) {
	m.Helper()
	for _, name := range names {
		for deadline := time.Now().Add(patience); !strings.Contains(m.ok("logs", name), "serving"); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				m.Fatalf("%s does not serve", name)
			}
		}
	}
}

// TestNetwork publishes a server and asks it from everywhere.
func TestNetwork(t *testing.T) {
	t.Parallel()
	hub, m, out := newHub(t), networkMachine(t), networktest.NewMachine(t)
	ref := netImage(t, hub, "network")
	m.ok("run", "-d", "--name", "web", "--ready", "line=serving", "-p", "8080:80", "-p", "127.0.0.1:8081:80", "-p", "8053:53/udp", "-p", out.Host+":8082:80",
		ref, "/inside", "serve", "web", "tcp:80", "tcp:81", "udp:53")
	m.serves("web")
	for _, row := range []struct {
		from, kind, addr string
		works            bool
	}{
		{"host", "tcp", "127.0.0.1:8080", true},
		{"host", "tcp", "[::1]:8080", true},
		{"host", "tcp", out.Host + ":8080", true},
		{"host", "tcp", "[" + out.Host6 + "]:8080", true},
		{"host", "tcp", "127.0.0.1:8081", true},
		{"host", "tcp", out.Host + ":8081", false},
		{"host", "udp", "127.0.0.1:8053", true},
		{"host", "udp", "[::1]:8053", false},
		{"outside", "tcp", out.Host + ":8080", true},
		{"outside", "tcp", "[" + out.Host6 + "]:8080", true},
		{"outside", "udp", out.Host + ":8053", true},
		{"outside", "tcp", out.Host + ":8081", false},
		{"outside", "tcp", out.Host + ":8082", true},
		{"outside", "tcp", out.Host + ":81", false},
	} {
		ask := networktest.Ask
		if row.from == "outside" {
			ask = out.Ask
		}
		text, err := ask(row.kind, row.addr)
		if works := err == nil && strings.HasPrefix(text, "web "); works != row.works {
			t.Errorf("%s asks %s %s: %q, %v; want an answer: %v", row.from, row.kind, row.addr, text, err, row.works)
		}
	}
	host := out.Host + ":8080"
	if text := m.ok("run", "--rm", ref, "/inside", "ask", "tcp", host); !strings.HasPrefix(text, "web ") {
		t.Errorf("another container asks %s: %q", host, text)
	}
	if text := m.ok("exec", "web", "/inside", "ask", "tcp", host); !strings.HasPrefix(text, "web ") {
		t.Errorf("the container asks itself at %s: %q", host, text)
	}
	m.ok("rm", "-f", "web")
}

// fails runs the command line, which fails, and returns what it says.
func (m *machine) fails(args ...string) string {
	m.Helper()
	c := exec.Command(filepath.Join(filepath.Dir(m.snapd), "snapctl"), append([]string{"--host", "unix://" + filepath.Join(m.run, "snapd.sock")}, args...)...)
	var stderr strings.Builder
	c.Stderr = &stderr
	if err := c.Run(); err == nil {
		m.Errorf("snapctl %v succeeds", args)
	}
	return stderr.String()
}

// answers asks until somebody answers, which may take a moment after a start.
func (m *machine) answers(kind, addr string) string {
	m.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		text, err := networktest.Ask(kind, addr)
		if err == nil {
			return text
		}
		if time.Now().After(deadline) {
			m.Fatalf("nobody answers at %s %s: %v", kind, addr, err)
		}
	}
}

// hostPort is where a container's port is published, of all addresses of IPv4.
func (m *machine) hostPort(name, port string) string {
	m.Helper()
	for line := range strings.Lines(m.ok("port", name, port)) {
		if _, n, ok := strings.Cut(strings.TrimSpace(line), "0.0.0.0:"); ok {
			return n
		}
	}
	m.Fatalf("port %s of %s is not published", port, name)
	return ""
}

// TestNetworkPorts: which ports are published, and whose they are.
func TestNetworkPorts(t *testing.T) {
	t.Parallel()
	hub, m := newHub(t), networkMachine(t)
	ref := netImage(t, hub, "ports")
	serve := []string{ref, "/inside", "serve", "s", "tcp:80", "udp:80"}
	m.ok(append([]string{"run", "-d", "--name", "a", "-p", "9101:80", "-p", "80", "-P", "--expose", "80/udp"}, serve...)...)
	m.serves("a")
	lines := strings.Count(m.ok("port", "a"), "\n")
	if ps := m.ok("ps"); lines != 6 || !strings.Contains(ps, "0.0.0.0:9101->80/tcp, [::]:9101->80/tcp") {
		t.Errorf("%d ports: %s%s", lines, ps, m.ok("port", "a"))
	}
	if text := m.answers("udp", "127.0.0.1:"+m.hostPort("a", "80/udp")); !strings.HasPrefix(text, "s ") {
		t.Errorf("udp: %q", text)
	}
	if says := m.fails(append([]string{"run", "--rm", "-p", "9101:80"}, serve...)...); !strings.Contains(says, "in use by container a") || !strings.Contains(says, "--publish 9101:80/tcp") {
		t.Errorf("a port twice: %s", says)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	taken := fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
	if says := m.fails(append([]string{"run", "--rm", "-p", taken + ":80"}, serve...)...); !strings.Contains(says, "another program") {
		t.Errorf("a port of another program: %s", says)
	}
	if l, err := net.Listen("tcp", ":9101"); err == nil {
		t.Error("another program can take a published port")
		l.Close()
	}
	if says := m.fails(append([]string{"run", "--rm", "-p", "198.18.0.1:9:80"}, serve...)...); !strings.Contains(says, "has no address") {
		t.Errorf("an address of nobody: %s", says)
	}
	m.ok(append([]string{"run", "-d", "--name", "b", "-p", "9101-9109:80"}, serve...)...)
	if n := m.hostPort("b", "80"); n != "9102" {
		t.Errorf("the first free port of 9101 to 9109 is %s", n)
	}
	// A stopped container's port is free at once, and a started one has it again.
	m.ok("stop", "-t", "0", "a")
	m.ok(append([]string{"run", "-d", "--name", "c", "-p", "9101:80"}, serve...)...)
	if says := m.fails("start", "a"); !strings.Contains(says, "in use by container c") {
		t.Errorf("a's port is c's: %s", says)
	}
	m.ok("rm", "-f", "c")
	m.ok("start", "a")
	m.answers("tcp", "127.0.0.1:9101")
	// One that was only made has no port, until it is started.
	m.ok("rm", "-f", "a")
	m.ok(append([]string{"create", "--name", "d", "-p", "9101:80"}, serve...)...)
	m.ok(append([]string{"run", "--rm", "-d", "--name", "e", "-p", "9101:80"}, serve...)...)
	m.ok("rm", "-f", "e")
	m.ok("start", "d")
	m.answers("tcp", "127.0.0.1:9101")
	m.ok("rm", "-f", "b", "d")
}

// TestNetworkSharing: namespaces of other containers, and of the host.
func TestNetworkSharing(t *testing.T) {
	t.Parallel()
	hub, m := newHub(t), networkMachine(t)
	ref := netImage(t, hub, "sharing")
	m.ok("run", "-d", "--name", "web", "--dns", "192.0.2.53", "--add-host", "box:192.0.2.7", "--hostname", "webby", ref, "/inside", "serve", "web", "tcp:80")
	m.serves("web")
	if text := m.ok("run", "--rm", "--network", "container:web", ref, "/inside", "ask", "tcp", "127.0.0.1:80"); !strings.HasPrefix(text, "web 127.0.0.1:") {
		t.Errorf("in the same network: %q", text)
	}
	files := m.ok("run", "--rm", "--network", "container:web", ref, "/inside", "cat", "/etc/hosts", "/etc/resolv.conf", "/etc/hostname")
	for _, want := range []string{"192.0.2.7\tbox\n", "nameserver 192.0.2.53\n", "webby\n"} {
		if !strings.Contains(files, want) {
			t.Errorf("without %q: %s", want, files)
		}
	}
	if says := m.fails("run", "--rm", "--network", "container:web", "-p", "80", ref, "/inside", "exit", "0"); !strings.Contains(says, "publish them there") {
		t.Errorf("a port in another one's network: %s", says)
	}
	m.ok("create", "--name", "later", "--network", "container:web", ref, "/inside", "ask", "tcp", "127.0.0.1:80")
	if text := m.ok("start", "-a", "later"); !strings.HasPrefix(text, "web ") {
		t.Errorf("a container that was made before: %q", text)
	}
	m.ok("stop", "-t", "0", "web")
	if says := m.fails("start", "later"); !strings.Contains(says, "web does not run: start it first") {
		t.Errorf("in the network of a container that does not run: %s", says)
	}
	m.ok("rm", "web", "later")

	m.ok("run", "-d", "--name", "ns", ref, "/inside", "wait")
	same := func(kind string, args ...string) bool {
		t.Helper()
		mine := m.ok(append(append([]string{"run", "--rm"}, args...), ref, "/inside", "link", "/proc/self/ns/"+kind)...)
		return mine == m.ok("exec", "ns", "/inside", "link", "/proc/self/ns/"+kind)
	}
	for kind, args := range map[string][]string{"pid": {"--pid", "container:ns"}, "ipc": {"--ipc", "container:ns"}, "net": {"--network", "container:ns"}} {
		if !same(kind, args...) || same(kind) {
			t.Errorf("%v does not share, or without it it does", args)
		}
	}
	m.ok("exec", "ns", "/inside", "make", "/dev/shm/x")
	m.ok("run", "--rm", "--ipc", "container:ns", ref, "/inside", "cat", "/dev/shm/x")
	host := func(kind string, args ...string) {
		t.Helper()
		want, err := os.Readlink("/proc/thread-self/ns/" + kind) // the first thread may be anywhere
		must(t, err)
		if got := m.ok(append(append([]string{"run", "--rm"}, args...), ref, "/inside", "link", "/proc/self/ns/"+kind)...); strings.TrimSpace(got) != want {
			t.Errorf("%v: %s is %s, the host's %s", args, kind, got, want)
		}
	}
	host("pid", "--pid", "host")
	host("ipc", "--ipc", "host")
	host("uts", "--uts", "host")
	host("net", "--network", "host")
	m.ok("rm", "-f", "ns")
}

// TestHostOptions: what a container takes of its machine.
func TestHostOptions(t *testing.T) {
	t.Parallel()
	hub, m := newHub(t), networkMachine(t)
	ref := netImage(t, hub, "options")
	cat := func(args ...string) string {
		t.Helper()
		i := len(args) - 1
		return m.ok(append(append([]string{"run", "--rm"}, args[:i]...), ref, "/inside", "cat", args[i])...)
	}
	for want, args := range map[string][]string{
		"Groups:\t0 7 99":         {"--group-add", "7", "--group-add", "99", "/proc/self/status"},
		"1\n":                     {"--sysctl", "net.ipv4.ip_forward=1", "/proc/sys/net/ipv4/ip_forward"},
		"0\n":                     {"/proc/sys/net/ipv4/ip_unprivileged_port_start"},
		"500\n":                   {"--oom-score-adj", "500", "/proc/self/oom_score_adj"},
		"size=2048k":              {"--shm-size", "2m", "/proc/self/mountinfo"},
		"CapEff:\t0000":           {"/proc/self/status"},
		"Cpus_allowed_list:\t0\n": {"--cpuset-cpus", "0", "/proc/self/status"},
		"Seccomp:\t0\n":           {"--privileged", "/proc/self/status"},
		"nameserver 8.8.8.8":      {"--dns", "8.8.8.8", "--dns-search", ".", "/etc/resolv.conf"},
		"10.201.0.1\tgw\n":        {"--network", "bridge", "--add-host", "gw:host-gateway", "/etc/hosts"},
		"":                        {"--device", "/dev/full:/dev/mine:r", "/etc/hostname"},
	} {
		if want == "10.201.0.1\tgw\n" { // whatever the subnet is
			want = ".0.1\tgw\n"
		}
		if got := cat(args...); !strings.Contains(got, want) {
			t.Errorf("%v: without %q:\n%s", args, want, got)
		}
	}
	file := filepath.Join(m.dir, "cid")
	id := m.ok("run", "-d", "--cidfile", file, "--stop-timeout", "0", "--name", "x", ref, "/inside", "wait")
	if b, err := os.ReadFile(file); err != nil || string(b) != strings.TrimSpace(id) {
		t.Errorf("cidfile: %q, %v, want %q", b, err, id)
	}
	if says := m.fails("run", "--rm", "--cidfile", file, ref, "/inside", "exit", "0"); !strings.Contains(says, "it exists") {
		t.Errorf("a cidfile twice: %s", says)
	}
	m.ok("stop", "x") // at once, as its timeout is 0
	m.ok("rm", "x")
	for want, args := range map[string][]string{
		"no such group":                  {"--group-add", "nobodys"},
		"no such device":                 {"--device", "/dev/nonexistent"},
		"would change the host":          {"--sysctl", "kernel.panic=1"},
		"no such container":              {"--pid", "container:nobody"},
		"only a container on the bridge": {"--network", "none", "--ip", "10.0.0.1"},
	} {
		if says := m.fails(append(append([]string{"run", "--rm"}, args...), ref, "/inside", "exit", "0")...); !strings.Contains(says, want) {
			t.Errorf("%v: %s", args, says)
		}
	}
}

// TestNetworkCrash: published ports outlive daemons, and what containers had is
// free when they end, whoever was killed when.
func TestNetworkCrash(t *testing.T) {
	t.Parallel()
	hub, m := newHub(t), networkMachine(t)
	ref := netImage(t, hub, "crash")
	m.ok("run", "-d", "--name", "web", "-p", "9201:80", ref, "/inside", "serve", "web", "tcp:80")
	m.serves("web")
	same := func(when string) {
		t.Helper()
		if text, err := networktest.Ask("tcp", "127.0.0.1:9201"); err != nil || !strings.HasPrefix(text, "web ") {
			t.Errorf("%s: %q, %v", when, text, err)
		}
	}
	same("at first")
	s, err := m.status()
	must(t, err)
	kill9(t, s.Worker)
	same("without a worker")
	m.waitReady(s.Supervisor)
	same("with another worker")
	if out := m.ok("port", "web", "80"); !strings.Contains(out, "0.0.0.0:9201") {
		t.Errorf("ports after a worker's death: %q", out)
	}
	if says := m.fails("run", "--rm", "-p", "9201:80", ref, "/inside", "exit", "0"); !strings.Contains(says, "in use by container web") {
		t.Errorf("its port, after a worker's death: %s", says)
	}
	m.kill()
	same("without a daemon")
	m.start()
	same("with another daemon")
	m.stop()
	same("with the daemon stopped")
	m.start()

	// Containers whose monitors are killed while there is no daemon to hear of it.
	m.ok("run", "-d", "--name", "gone", "-p", "9202:80", ref, "/inside", "wait")
	monitors := m.monitors("gone")
	m.kill()
	for _, pid := range monitors {
		kill9(t, pid)
	}
	m.start()
	m.ok("run", "-d", "--name", "next", "-p", "9202:80", ref, "/inside", "serve", "next", "tcp:80")
	m.answers("tcp", "127.0.0.1:9202")
	m.ok("rm", "-f", "next", "gone")
	for range 40 {
		m.ok("run", "--rm", "-q", "-p", "9203:80", ref, "/inside", "exit", "0")
	}
	m.ok("rm", "-f", "web")
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		records, err := filepath.Glob(filepath.Join(m.run, "network", strings.Repeat("?", 64)+".json"))
		must(t, err)
		if len(records) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("records are left: %v", records)
		}
	}
}

// monitors are the processes that hold a container.
func (m *machine) monitors(name string) (pids []int) {
	m.Helper()
	id := strings.TrimSpace(m.ok("ps", "-q", "--no-trunc"))
	for _, pid := range m.processesNow() {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		for _, one := range strings.Fields(id) {
			if strings.Contains(string(b), "\x00monitor\x00") && strings.Contains(string(b), one) && strings.Contains(m.ok("inspect", name), one) {
				pids = append(pids, pid)
			}
		}
	}
	if len(pids) == 0 {
		m.Fatalf("container %s has no monitor", name)
	}
	return pids
}

// processesNow lists those that have been given a directory of m.
func (m *machine) processesNow() (pids []int) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range all {
		b, _ := os.ReadFile(p)
		if pid, err := strconv.Atoi(strings.Split(p, "/")[2]); err == nil && strings.Contains(string(b), m.dir) && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}
