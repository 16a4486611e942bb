package main

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// What verbs ask of the daemon, and what they make of the answers.
func TestVerbs(t *testing.T) {
	image := control.Image{Ref: "docker.io/library/x:1", Digest: "sha256:dd", ID: "sha256:1111", Size: 2000, Local: 500, Lazy: true}
	row := control.Container{ID: "cafe", Name: "box", Status: monitor.StatusExited, ExitCode: 4}
	ops := map[string]func(*control.Request) error{
		control.OpPull: func(r *control.Request) error {
			r.Event(control.Progress{ID: "aa", Action: "pulling", Off: 1, Size: 2})
			r.Event(control.Progress{ID: "aa", Action: "pulling", Off: 2, Size: 2, Done: true})
			return r.Reply(image)
		},
		control.OpImages:  answer([]control.Image{image}),
		control.OpRmi:     answer([]control.Removed{{Ref: "x:1", Deleted: true}}),
		control.OpTag:     answer(nil),
		control.OpPush:    answer(control.Pushed{Ref: "r/x", Digest: "sha256:pp", Size: 3}),
		control.OpConvert: answer(control.Pushed{Ref: "r/x", Digest: "sha256:cc", Size: 3}),
		control.OpPs:      answer([]control.Container{row}),
		control.OpResolve: answer(row),
		control.OpRm:      answer(row),
		control.OpCInsp:   answer(map[string]any{"ID": "cafe"}),
		control.OpInfo: answer(control.Info{Backend: "erofs", Root: "/r", Features: map[string]string{"a": "yes", "longer": "no: why"},
			Containerd: []control.ContainerdInfo{{Name: "default", Socket: "/r/c.sock", Address: "/c.sock", CRI: true, Calls: 7}}}),
		control.OpStat: answer(map[string]int64{"b.x": 2, "a.y": 1}),
		control.OpPool: answer(control.Pool{Size: 2, Slots: []control.PoolSlot{{Pid: 7, Cgroup: "/snapfs/pool-1"}, {Pid: 8, Why: "no room"}},
			Counts: control.PoolCounts{Made: 5, Hits: 3, Misses: map[string]int64{"empty": 1, "died": 2}, Sandboxes: 2, Bare: map[string]int64{"limits": 1}},
			Bridge: control.PoolBridge{Size: 2, Ready: 1, Made: 4, Hits: 3}}),
		control.OpMetrics: answer("# TYPE a counter\na 1\n"),
		control.OpVersion: answer(control.Version{Version: "v9", Protocol: 1}),
		control.OpMounts:  answer([]control.Mount{{Ref: "x", Target: "/m", Rootfs: control.Rootfs{Upper: "/u"}}}),
	}
	for _, test := range []struct {
		args   string
		stdout string // all of it
		stderr string // part of it
		asked  string // part of a request
		status int
	}{
		{"pull x:1", "sha256:dd\n", "aa: pulling, done: 2B\n", `"Policy":"always"`, 0},
		{"pull -q --platform linux/arm64 --wait x:1", "sha256:dd\n", "", `"Platform":"linux/arm64","Policy":"always","Wait":true`, 0},
		{"images -q", "1111\n", "", "image.list", 0},
		{"images -q --no-trunc", "sha256:1111\n", "", "image.list", 0},
		{"rmi -f x:1", "Deleted: x:1\n", "", `"Force":true`, 0},
		{"tag x y", "", "", `{"Src":"x","Dst":"y"}`, 0},
		{"push x r/x", "sha256:pp\n", "r/x: 3B", `{"Src":"x","Dst":"r/x"}`, 0},
		{"convert --format zstd:chunked --level 3 x r/x", "sha256:cc\n", "", `"Format":"zstd:chunked","Platform":"","Level":3`, 0},
		{"convert --format zip x r/x", "", "want estargz or zstd:chunked", "", 2},
		{"ps -a -q", "cafe\n", "", `{"All":true}`, 0},
		{"wait box", "4\n", "", "container.resolve", 0},
		{"stop box", "box\n", "", "container.resolve", 0}, // it has stopped: that is success
		{"kill box", "", "container box is not running", "container.resolve", 1},
		{"exec box true", "", "container box is not running", "container.resolve", 125},
		{"rm -f box", "box\n", "", `"Force":true`, 0},
		{"inspect box", "[\n    {\n        \"ID\": \"cafe\"\n    }\n]\n", "", "container.inspect", 0},
		{"inspect --type image box", "", "no such thing", "image.inspect", 1},
		{"stat", "COUNTER   VALUE\na.y       1\nb.x       2\n", "", "stat", 0},
		{"pool", "KIND     WANTED   READY   MADE   HITS   MISSES\nslot     2        2       5      3      3 (died 2, empty 1)\nbridge   2        1       4      3      0\n" +
			"\nOf the hits, 2 took the slot's sandbox, others did not: 1 (limits 1).\n\nPID   MADE   SANDBOX\n7     N/A    /snapfs/pool-1\n8     N/A    none: no room\n", "", `pool {}`, 0},
		{"pool --size 3 --drain --json", `{"Size":2,"Slots":[{"Pid":7,"Made":"0001-01-01T00:00:00Z","Cgroup":"/snapfs/pool-1"},{"Pid":8,"Made":"0001-01-01T00:00:00Z","Why":"no room"}],` +
			`"Counts":{"Made":5,"Died":0,"Hits":3,"Misses":{"died":2,"empty":1},"Sandboxes":2,"Bare":{"limits":1}},"Bridge":{"Size":2,"Ready":1,"Made":4,"Hits":3}}` + "\n", "", `pool {"Size":3,"Drain":true}`, 0},
		{"pool --size many", "", "want a number", "", 2},
		{"stat --json", "{\"a.y\":1,\"b.x\":2}\n", "", "stat", 0},
		{"stat --prometheus", "# TYPE a counter\na 1\n", "", "metrics", 0},
		{"mount", "IMAGE   TARGET   MODE\nx       /m       writable\n", "", "mount.list", 0},
		{"umount /elsewhere", "", "/elsewhere: no image is mounted there", "mount.list", 1},
		{"mount x /nonexistent", "", "no such file", "", 1},
		{"mount --upper /tmp x /tmp", "", "belong together", "", 2},
		{"logs box", "", "no such thing", "container.logs", 1},
		{"daemon status", "running: supervisor 0, worker 0 (replaced 0 times), root /r, run \n", "", "info", 0},
	} {
		t.Run(test.args, func(t *testing.T) {
			d := newDaemon(t, ops)
			env, out, errs := newEnv(t, d.socket)
			status := env.main(strings.Fields(test.args))
			if out() != test.stdout || !strings.Contains(errs(), test.stderr) || status != test.status {
				t.Errorf("exit status %d, want %d\nstdout %q\n  want %q\nstderr %q, want %q in it", status, test.status, out(), test.stdout, errs(), test.stderr)
			}
			if asked := strings.Join(d.requests(), "\n"); !strings.Contains(asked, test.asked) {
				t.Errorf("asked for %s, want %s in it", asked, test.asked)
			}
		})
	}
}

func TestJSONIsOneObjectALine(t *testing.T) {
	d := newDaemon(t, map[string]func(*control.Request) error{
		control.OpPs: answer([]control.Container{{ID: "a", Name: "x\ny"}, {ID: "b"}}),
	})
	env, out, _ := newEnv(t, d.socket)
	if status := env.main([]string{"ps", "--json"}); status != 0 {
		t.Fatal(status)
	}
	lines := strings.Split(strings.TrimSuffix(out(), "\n"), "\n")
	for i, line := range lines {
		var c control.Container
		if err := json.Unmarshal([]byte(line), &c); err != nil || c.ID != []string{"a", "b"}[i] {
			t.Errorf("line %q: %v", line, err)
		}
	}
	if len(lines) != 2 {
		t.Errorf("%d lines", len(lines))
	}
}

func TestCreateArguments(t *testing.T) {
	decoded := make(chan control.CreateArgs, 1)
	d := newDaemon(t, map[string]func(*control.Request) error{
		control.OpCreate: func(r *control.Request) error {
			var a control.CreateArgs
			if err := r.Decode(&a); err != nil {
				return err
			}
			decoded <- a
			return r.Reply(control.Created{ID: a.ID, Name: "made_up", Warnings: []string{"careful"}})
		},
	})
	env, out, errs := newEnv(t, d.socket)
	file := t.TempDir() + "/env"
	if err := os.WriteFile(file, []byte("A=file\nF=1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{
		"create", "-e", "A=flag", "--env-file", file, "-w", "/w", "-u", "me:us", "-v", "/a:/b:ro", "--mount", "type=tmpfs,target=/t",
		"--network", "host", "--name", "n", "-h", "host1", "--read-only", "--tmpfs", "/run:size=1m", "-m", "64m", "--cpus", "1.5", "--pids-limit", "100",
		"--cap-add", "NET_ADMIN", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--ulimit", "nofile=10", "--entrypoint", "/e", "--init",
		"--pull", "never", "--platform", "linux/arm64", "--stop-signal", "USR1", "--label", "k=v", "-i", "--rm",
		"--ready", "line=^up$", "--health-cmd", "true", "--health-interval", "1m", "--health-timeout", "2s", "--health-start-period", "3s",
		"--health-start-interval", "4s", "--health-retries", "5", "--log-opt", "max-size=10m", "--log-opt", "max-file=3", "--log-driver", "json-file",
		"-p", "8080:80", "-P", "--expose", "53/udp", "--ip", "10.0.0.5", "--mac-address", "02:00:00:00:00:01", "--dns", "1.1.1.1", "--dns-search", "x", "--dns-opt", "ndots:2", "--add-host", "h:host-gateway",
		"--annotation", "a=b", "--blkio-weight", "500", "--cgroup-parent", "/p", "--cpuset-cpus", "0-1", "--cpuset-mems", "0", "-c", "512", "--device", "/dev/fuse:r", "--group-add", "audio",
		"--ipc", "host", "--pid", "container:x", "--uts", "host", "--memory-reservation", "32m", "--memory-swap", "-1", "--oom-score-adj", "-5", "--privileged", "--shm-size", "1m",
		"--stop-timeout", "-1", "--sysctl", "net.x=1", "--userns", "auto:size=7", "img:1", "cmd", "-x", "--rm",
	}
	if status := env.main(args); status != 0 {
		t.Fatalf("exit status %d: %s", status, errs())
	}
	a := <-decoded
	if len(a.ID) != 64 || out() != a.ID+"\n" || !strings.Contains(errs(), "warning: careful") {
		t.Errorf("ID %q, stdout %q, stderr %q", a.ID, out(), errs())
	}
	a.ID = ""
	got, _ := json.Marshal(a)
	want := `{"ID":"","Name":"n","Image":"img:1","Platform":"linux/arm64","Pull":"never","Args":["cmd","-x","--rm"],"Entrypoint":["/e"],` +
		`"Env":["A=file","F=1","A=flag"],"Workdir":"/w","User":"me:us","Hostname":"host1","TTY":false,"OpenStdin":true,"Remove":true,"Record":false,"ReadOnly":true,"Init":true,` +
		`"Network":"host","Publish":[{"Host":8080,"HostEnd":8080,"Container":80,"Proto":"tcp"}],"PublishAll":true,"Expose":[{"Container":53,"Proto":"udp"}],"IPv4":"10.0.0.5","MAC":"02:00:00:00:00:01",` +
		`"DNS":["1.1.1.1"],"DNSSearch":["x"],"DNSOptions":["ndots:2"],"Hosts":["h:host-gateway"],"Mounts":[{"Type":"bind","Source":"/a","Target":"/b","ReadOnly":true,"Options":null,"Create":true},{"Type":"tmpfs","Source":"","Target":"/t","ReadOnly":false,"Options":null,"Create":false}],` +
		`"Tmpfs":["/run:size=1m"],"Memory":67108864,"NanoCPUs":1500000000,"PidsLimit":100,"CapAdd":["NET_ADMIN"],"CapDrop":["ALL"],"SecurityOpt":["no-new-privileges"],` +
		`"Ulimits":[{"Name":"nofile","Soft":10,"Hard":10}],"StopSignal":"USR1","Labels":{"k":"v"},"Height":0,"Width":0,"Annotations":{"a":"b"},"BlkioWeight":500,"CgroupParent":"/p","CPUs":"0-1","MemoryNodes":"0","CPUShares":512,` +
		`"Devices":[{"Host":"/dev/fuse","Inside":"/dev/fuse","Access":"r"}],"GroupAdd":["audio"],"IPC":"host","PID":"container:x","UTS":"host","MemoryReservation":33554432,"MemorySwap":-1,` +
		`"OOMScoreAdj":-5,"Privileged":true,"ShmSize":1048576,"StopTimeout":-1,"Sysctls":{"net.x":"1"},"UserNS":"auto:size=7","Ready":"line=^up$",` +
		`"Health":{"Test":["CMD-SHELL","true"],"Interval":60000000000,"Timeout":2000000000,"StartPeriod":3000000000,"StartInterval":4000000000,"Retries":5},"NoHealthcheck":false,"LogDriver":"json-file","LogMaxSize":10485760,"LogMaxFiles":3}`
	if string(got) != want {
		t.Errorf("asked for\n%s\nwant\n%s", got, want)
	}
}

// A worker that dies in the middle of a request is asked again, if that is
// harmless, and not for ever.
func TestRepeatedRequests(t *testing.T) {
	for _, test := range []struct {
		op     string
		args   []string
		deaths int
		asked  int
		text   string
	}{
		{control.OpPull, []string{"pull", "x"}, 2, 3, ""},
		{control.OpPull, []string{"pull", "x"}, 99, attempts, "the daemon went away"},
		{control.OpPush, []string{"push", "x"}, 1, 1, "whether it was done is not known"},
		{control.OpRm, []string{"rm", "x"}, 1, 2, ""},
	} {
		t.Run(test.op, func(t *testing.T) {
			left := test.deaths
			d := newDaemon(t, map[string]func(*control.Request) error{
				test.op: func(r *control.Request) error {
					if left--; left >= 0 {
						return r.Conn.Close()
					}
					return r.Reply(nil)
				},
			})
			env, _, errs := newEnv(t, d.socket)
			status := env.main(test.args)
			if n := len(d.requests()); n != test.asked || (status == 0) != (test.text == "") || !strings.Contains(errs(), test.text) {
				t.Errorf("asked %d times, want %d; exit status %d, %q", n, test.asked, status, errs())
			}
		})
	}
}

func TestNoDaemon(t *testing.T) {
	missing := t.TempDir() + "/snapd.sock"
	for name, test := range map[string]struct {
		change func(*Env)
		text   string
	}{
		"forbidden":    {func(e *Env) {}, "--no-autostart forbids"},
		"no root":      {func(e *Env) { e.NoAutostart = false }, "say with --root"},
		"other socket": {func(e *Env) { e.NoAutostart = false; e.Host += "x" }, "its socket is always called snapd.sock"},
	} {
		t.Run(name, func(t *testing.T) {
			env, _, errs := newEnv(t, missing)
			test.change(env)
			if status := env.main([]string{"ps"}); status != 1 || !strings.Contains(errs(), test.text) || strings.Count(errs(), "\n") != 1 {
				t.Errorf("exit status %d, %q, want %q", status, errs(), test.text)
			}
		})
	}
	env, _, _ := newEnv(t, missing)
	if status := env.main([]string{"daemon", "status"}); status != 3 {
		t.Errorf("daemon status: exit status %d, want 3", status)
	}
	if status := env.main([]string{"run", "x"}); status != 125 {
		t.Errorf("run: exit status %d, want 125", status)
	}
}

func TestComplete(t *testing.T) {
	d := newDaemon(t, map[string]func(*control.Request) error{
		control.OpPs:     answer([]control.Container{{Name: "web"}, {Name: "worker"}, {Name: "db"}}),
		control.OpImages: answer([]control.Image{{Ref: "docker.io/library/x:1"}}),
	})
	for line, want := range map[string][]string{
		"ru":          {"run"},
		"p":           {"ps", "port", "pause", "pull", "push", "pool"},
		"rm w":        {"web", "worker"},
		"run docker":  {"docker.io/library/x:1"},
		"run --env-f": {"--env-file"},
		"--no-a":      {"--no-autostart"},
		"nonsense x":  nil,
	} {
		env, out, _ := newEnv(t, d.socket)
		host := []string{"__complete", "--host", "unix://" + d.socket}
		if status := env.main(append(host, strings.Fields(line)...)); status != 0 {
			t.Errorf("%q: exit status %d", line, status)
		}
		if got := strings.Fields(out()); !slices.Equal(got, want) {
			t.Errorf("%q completes to %q, want %q", line, got, want)
		}
	}
}

// TestRemoveAgain: when the daemon dies in the middle of rm, whether that was done is found out.
func TestRemoveAgain(t *testing.T) {
	var n atomic.Int32
	d := newDaemon(t, map[string]func(*control.Request) error{control.OpRm: func(r *control.Request) error {
		if n.Add(1) == 1 {
			r.Conn.Close()
			return nil
		}
		return &control.Error{Code: control.CodeNotFound, Message: "no such container"}
	}})
	env, out, errs := newEnv(t, d.socket)
	if status := env.main([]string{"rm", "box"}); status != 0 || out() != "box\n" || n.Load() != 2 {
		t.Errorf("exit status %d after %d requests: %s", status, n.Load(), errs())
	}
}
