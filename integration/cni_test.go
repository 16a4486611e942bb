package integration

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/snapfs/snapfs/internal/peers"
)

// cniMachine is a machine with networks of CNI. Of texts, HOME is a directory for what plugins keep.
func cniMachine(t *testing.T, bin, config string, confs map[string]string) (m *machine, home string) {
	t.Helper()
	needs(t)
	home = t.TempDir()
	conf := filepath.Join(home, "net.d")
	must(t, os.Mkdir(conf, 0o700))
	for name, text := range confs {
		must(t, os.WriteFile(filepath.Join(conf, name), []byte(strings.ReplaceAll(text, "HOME", home)), 0o600))
	}
	m = startMachine(t, fmt.Sprintf("[network]\nbridge = 'sfb%d'\ncni_config = '%s'\ncni_plugins = ['%s']\n%s", bridges.Add(1), conf, bin, config))
	t.Cleanup(func() { // after a failure
		for _, id := range strings.Fields(m.ok("ps", "-a", "-q")) {
			m.ok("rm", "-f", id)
		}
	})
	return m, home
}

const cniBlue = `{"cniVersion":"1.1.0","name":"blue","plugins":[
	{"type":"bridge","bridge":"cniblue","isGateway":true,"ipMasq":true,"ipMasqBackend":"nftables","capabilities":{"mac":true,"ips":true},
	 "dns":{"nameservers":["192.0.2.53"],"search":["blue.example"]},
	 "ipam":{"type":"host-local","dataDir":"HOME/leases","ranges":[[{"subnet":"10.77.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
	{"type":"portmap","backend":"nftables","capabilities":{"portMappings":true}}]}`

const cniPlain = `{"cniVersion":"0.4.0","name":"plain","plugins":[
	{"type":"bridge","bridge":"cniplain","isGateway":true,"ipam":{"type":"host-local","dataDir":"HOME/leases","subnet":"10.78.0.0/24"}}]}`

// TestCNI connects containers by the plugins that most networks are made of.
func TestCNI(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft, of Debian's nftables: the plugins bridge and portmap run it")
	}
	m, home := cniMachine(t, needPeer(t, peers.CNI), "cni_collect = true", map[string]string{"10-blue.conflist": cniBlue, "20-plain.conflist": cniPlain})
	ref := netImage(t, newHub(t), "cni")
	lease := filepath.Join(home, "leases/blue/10.77.0.9")
	m.ok("run", "-d", "--name", "web", "--hostname", "webby", "--network", "cni:blue", "--ip", "10.77.0.9", "--mac-address", "02:00:00:00:77:09", "-p", "9301:80",
		ref, "/inside", "serve", "web", "tcp:80")
	same := func(when string) {
		t.Helper()
		for _, addr := range []string{"10.77.0.9:80", "127.0.0.1:9301"} {
			if text := m.answers("tcp", addr); !strings.HasPrefix(text, "web ") {
				t.Errorf("%s, %s: %q", when, addr, text)
			}
		}
		if _, err := os.Stat(lease); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	same("at first")
	about := m.ok("inspect", "web")
	for _, want := range []string{"cni:blue", `"10.77.0.9/24"`, `"10.77.0.1"`, `"02:00:00:00:77:09"`, `"192.0.2.53"`} {
		if !strings.Contains(about, want) {
			t.Errorf("inspect: without %s: %s", want, about)
		}
	}
	files := m.ok("exec", "web", "/inside", "cat", "/etc/hosts", "/etc/resolv.conf")
	for _, want := range []string{"10.77.0.9\twebby\n", "nameserver 192.0.2.53\n", "search blue.example\n"} {
		if !strings.Contains(files, want) {
			t.Errorf("without %q: %s", want, files)
		}
	}
	if text := m.ok("run", "--rm", "--network", "container:web", ref, "/inside", "ask", "tcp", "127.0.0.1:80"); !strings.HasPrefix(text, "web ") {
		t.Errorf("in the same network: %q", text)
	}
	m.ok("run", "-d", "--name", "other", "--network", "cni:blue", ref, "/inside", "wait")
	// With users of its own, its network is theirs: it may do there what root can.
	m.ok("run", "-d", "--name", "own", "--userns", "auto", "--network", "cni:blue", "--sysctl", "net.ipv4.ip_forward=1", ref, "/inside", "wait")
	for _, from := range []string{"other", "own"} { // the first packet may be lost, before the kernel knows that a link is up
		m.eventually(from+" reaches web", func() bool {
			text, code := m.snapctl("exec", from, "/inside", "ask", "tcp", "10.77.0.9:80")
			return code == 0 && strings.HasPrefix(text, "web 10.77.0.")
		})
		m.ok("rm", "-f", from)
	}
	for want, args := range map[string][]string{
		"in use by container web":           {"--network", "cni:blue", "-p", "9301:80"},
		"capability portMappings":           {"--network", "cni:plain", "-p", "9302:80"},
		"those that are there: blue, plain": {"--network", "cni:red"},
		"--mac-address":                     {"--network", "none", "--mac-address", "02:00:00:00:77:10"},
	} {
		if says := m.fails(append(append([]string{"run", "--rm"}, args...), ref, "/inside", "exit", "0")...); !strings.Contains(says, want) {
			t.Errorf("%v: without %q: %s", args, want, says)
		}
	}
	// An address that somebody has: host-local's own words.
	if says := m.fails("run", "--rm", "--network", "cni:blue", "--ip", "10.77.0.9", ref, "/inside", "exit", "0"); !strings.Contains(says, "10.77.0.9") || !strings.Contains(says, "bridge ADD") {
		t.Errorf("an address twice: %s", says)
	}
	m.ok("run", "--rm", "--network", "cni:plain", "--ip", "10.78.0.7", "--mac-address", "02:00:00:00:78:07", ref, "/inside", "exit", "0") // by arguments

	m.ok("stop", "-t", "0", "web")
	m.eventually("the address is free", func() bool { _, err := os.Stat(lease); return err != nil })
	m.ok("start", "web")
	same("after another start")
	s, err := m.status()
	must(t, err)
	kill9(t, s.Worker)
	m.waitReady(s.Supervisor)
	same("with another worker")
	if says := m.fails("run", "--rm", "--network", "cni:blue", "-p", "9301:80", ref, "/inside", "exit", "0"); !strings.Contains(says, "in use by container web") {
		t.Errorf("its port, after a worker's death: %s", says)
	}
	monitors := m.monitors("web")
	m.kill()
	same("without a daemon")
	for _, pid := range monitors {
		kill9(t, pid)
	}
	m.start() // which hears of the end
	m.eventually("nothing is left", func() bool { return m.cniLeft(home) == "" && m.cniLinks() == "" })
	m.ok("rm", "web")
}

// cniLeft says what is left of containers on a network of CNI.
func (m *machine) cniLeft(home string) string {
	var left []string
	for _, pattern := range []string{filepath.Join(m.run, "netns/*"), filepath.Join(m.root, "cni/*.json"), filepath.Join(m.root, "cni/cache/results/*"), filepath.Join(home, "leases/*/10.*")} {
		found, _ := filepath.Glob(pattern)
		left = append(left, found...)
	}
	return strings.Join(left, " ")
}

// cniLinks are what the plugins bridge and portmap have left.
func (m *machine) cniLinks() string {
	var left []string
	links, err := net.Interfaces()
	must(m, err)
	for _, l := range links {
		if strings.HasPrefix(l.Name, "veth") { // bridge's name for them
			left = append(left, l.Name)
		}
	}
	if out, err := exec.Command("nft", "list", "ruleset").Output(); err == nil && strings.Contains(string(out), "9301") {
		left = append(left, string(out))
	}
	return strings.Join(left, " ")
}

// cniFake is a plugin that does what its network is called.
const cniFake = `#!/bin/sh
conf=$(cat)
echo "$CNI_CONTAINERID $CNI_COMMAND" >>HOME/calls
name=$(echo "$conf" | sed 's/.*"name":"\([a-z]*\)".*/\1/')
case $name-$CNI_COMMAND in
hangs-ADD)
	echo "waiting for the moon" >&2
	sleep 1000 & echo $$ $! >HOME/pids.new
	mv HOME/pids.new HOME/pids
	wait ;;
waits-ADD)
	if [ -e HOME/wait ]; then
		echo $$ >HOME/pids.new
		mv HOME/pids.new HOME/pids
		exec sleep 1000
	fi ;;
fails-ADD) echo '{"cniVersion":"1.0.0","code":7,"msg":"the cable is cut"}'; exit 1 ;;
lies-ADD) printf '%s' '{"cniVersion":"1.0.0","dns":{"nameservers":["1.1.1.1\nnameserver 6.6.6.6"]}}'; exit 0 ;;
floods-ADD) exec cat /dev/zero ;;
stuck-DEL) [ ! -e HOME/stuck ] || { echo "not now" >&2; exit 1; } ;;
esac
[ $CNI_COMMAND = DEL ] || echo '{"cniVersion":"1.0.0"}'
`

// fakeCNI is a cniMachine whose only plugin is cniFake.
func fakeCNI(t *testing.T, config string) (m *machine, home string) {
	t.Helper()
	bin, confs := t.TempDir(), map[string]string{}
	for _, name := range []string{"hangs", "waits", "fails", "lies", "floods", "stuck"} {
		confs[name+".conflist"] = fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[{"type":"fake"}]}`, name)
	}
	m, home = cniMachine(t, bin, config, confs)
	must(t, os.WriteFile(filepath.Join(bin, "fake"), []byte(strings.ReplaceAll(cniFake, "HOME", home)), 0o755))
	return m, home
}

// unbalanced lists the containers whose last command was not DEL.
func unbalanced(t testing.TB, home string) (list []string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(home, "calls"))
	must(t, err)
	last := map[string]string{}
	for line := range strings.Lines(string(b)) {
		id, command, _ := strings.Cut(strings.TrimSpace(line), " ")
		last[id] = command
	}
	for id, command := range last {
		if command != "DEL" {
			list = append(list, id)
		}
	}
	return list
}

// TestCNIBadPlugins: plugins that do not do what they should cost an error, in their own words, and leave nothing.
func TestCNIBadPlugins(t *testing.T) {
	t.Parallel()
	m, home := fakeCNI(t, "cni_timeout = '8s'") // which a shell keeps, on a machine that does much else
	ref := netImage(t, newHub(t), "cnibad")
	for name, wants := range map[string][]string{
		"hangs":  {"waiting for the moon", "has not ended in the 8s"},
		"fails":  {"the cable is cut"},
		"lies":   {"is no address"},
		"floods": {"too long"},
	} {
		says := m.fails("run", "--rm", "--network", "cni:"+name, ref, "/inside", "exit", "0")
		for _, want := range wants {
			if !strings.Contains(says, want) {
				t.Errorf("%s: without %q: %s", name, want, says)
			}
		}
	}
	for _, pid := range m.plugins(home) {
		m.eventually(fmt.Sprintf("process %d of a plugin that was given up ends", pid), func() bool { return !alive(pid) })
	}
	if left := m.cniLeft(home); left != "" || len(unbalanced(t, home)) > 0 {
		t.Errorf("left: %s; without DEL: %v", left, unbalanced(t, home))
	}
	// What cannot be undone now is undone later, at the latest by the next daemon.
	must(t, os.WriteFile(filepath.Join(home, "stuck"), nil, 0o600))
	m.ok("run", "--rm", "--network", "cni:stuck", ref, "/inside", "exit", "0")
	m.eventually("DEL has failed", func() bool { return strings.Contains(m.d.log.String(), "not now") })
	m.stop()
	must(t, os.Remove(filepath.Join(home, "stuck")))
	m.start()
	m.eventually("nothing is left", func() bool { return m.cniLeft(home) == "" })
}

// plugins are the processes of the plugin that hangs.
func (m *machine) plugins(home string) (pids []int) {
	m.Helper()
	m.eventually("a plugin hangs", func() bool { _, err := os.Stat(filepath.Join(home, "pids")); return err == nil })
	b, err := os.ReadFile(filepath.Join(home, "pids"))
	must(m, err)
	for _, s := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(s)
		must(m, err)
		pids = append(pids, pid)
	}
	return pids
}

// TestCNIKills kills the worker, and the whole daemon, while a plugin runs.
func TestCNIKills(t *testing.T) {
	t.Parallel()
	m, home := fakeCNI(t, "cni_timeout = '1m'")
	ref := netImage(t, newHub(t), "cnikills")
	for name, kill := range map[string]func(){
		"the worker": func() {
			s, err := m.status()
			must(t, err)
			kill9(t, s.Worker)
			m.waitReady(s.Supervisor)
		},
		"worker and supervisor": func() {
			m.kill()
			m.start()
		},
	} {
		must(t, os.WriteFile(filepath.Join(home, "wait"), nil, 0o600))
		var client sync.WaitGroup
		client.Go(func() { // fails, or tries again
			exec.Command(filepath.Join(filepath.Dir(m.snapd), "snapctl"), "--host", "unix://"+filepath.Join(m.run, "snapd.sock"),
				"run", "--rm", "--network", "cni:waits", ref, "/inside", "exit", "0").Run()
		})
		pids := m.plugins(home)
		must(t, os.Remove(filepath.Join(home, "wait")))
		must(t, os.Remove(filepath.Join(home, "pids")))
		kill()
		for _, pid := range pids {
			for deadline := time.Now().Add(patience); alive(pid); time.Sleep(5 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%s was killed, and the plugin runs on", name)
				}
			}
		}
		client.Wait()
		m.eventually("nothing is left", func() bool { return m.cniLeft(home) == "" && len(unbalanced(t, home)) == 0 })
	}
}
