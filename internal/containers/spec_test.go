package containers

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime/monitor"
)

func build(t testing.TB, change func(*control.CreateArgs, *ocispec.Image)) (*specs.Spec, error) {
	t.Helper()
	a := &control.CreateArgs{ID: strings.Repeat("ab", 32), Network: "none", Hostname: "h", Args: []string{"true"}}
	image := &ocispec.Image{}
	if change != nil {
		change(a, image)
	}
	return spec(a, image, "/state/c", "/snapfs")
}

func TestDefaultsAreDockers(t *testing.T) {
	s, err := build(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := len(s.Process.Capabilities.Bounding); got != 14 {
		t.Errorf("%d capabilities, want Docker's 14: %v", got, s.Process.Capabilities.Bounding)
	}
	if s.Process.Capabilities.Inheritable != nil || s.Process.Capabilities.Ambient != nil {
		t.Error("inheritable or ambient capabilities are set")
	}
	if s.Linux.Seccomp == nil || s.Linux.Seccomp.DefaultAction != specs.ActErrno {
		t.Error("no default seccomp profile")
	}
	if s.Process.NoNewPrivileges || s.Process.Rlimits != nil {
		t.Error("no_new_privs or rlimits differ from Docker's default")
	}
	for _, p := range dockerMasked {
		if !slices.Contains(s.Linux.MaskedPaths, p) {
			t.Errorf("%s is not masked", p)
		}
	}
	for _, typ := range []specs.LinuxNamespaceType{"mount", "pid", "uts", "ipc", "network", "cgroup"} {
		if !slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == typ && n.Path == "" }) {
			t.Errorf("no new %s namespace", typ)
		}
	}
	if slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == "/run" }) {
		t.Error("a tmpfs hides the image's /run")
	}
	if s.Linux.CgroupsPath != "/snapfs/"+strings.Repeat("ab", 32) {
		t.Errorf("cgroup %s", s.Linux.CgroupsPath)
	}
}

func TestCommand(t *testing.T) {
	for _, c := range []struct {
		name                 string
		imageEntry, imageCmd []string
		entry, args          []string
		want                 string
	}{
		{"image's command", nil, []string{"bash"}, nil, nil, "bash"},
		{"entrypoint and command", []string{"e"}, []string{"c"}, nil, nil, "e c"},
		{"own arguments", []string{"e"}, []string{"c"}, nil, []string{"a", "b"}, "e a b"},
		{"own entrypoint drops the image's command", []string{"e"}, []string{"c"}, []string{"x"}, nil, "x"},
		{"own entrypoint and arguments", []string{"e"}, []string{"c"}, []string{"x"}, []string{"y"}, "x y"},
		{"entrypoint cleared", []string{"e"}, []string{"c"}, []string{""}, []string{"y"}, "y"},
		{"nothing", nil, nil, nil, nil, ""},
		{"cleared and nothing", []string{"e"}, nil, []string{""}, nil, ""},
		{"empty word", nil, []string{""}, nil, nil, ""},
	} {
		s, err := build(t, func(a *control.CreateArgs, i *ocispec.Image) {
			a.Args, a.Entrypoint, i.Config.Entrypoint, i.Config.Cmd = c.args, c.entry, c.imageEntry, c.imageCmd
		})
		if c.want == "" {
			if err == nil {
				t.Errorf("%s: no error", c.name)
			}
			continue
		}
		if err != nil || strings.Join(s.Process.Args, " ") != c.want {
			t.Errorf("%s: %v, %v, want %s", c.name, s, err, c.want)
		}
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("SECRET", "of the daemon")
	s, err := build(t, func(a *control.CreateArgs, i *ocispec.Image) {
		i.Config.Env = []string{"A=1", "SECRET", "=x", "B=2", "PATH=/image"}
		a.Env = []string{"B=3", "C=a=b"}
		a.TTY = true
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(s.Process.Env, " "), "HOSTNAME=h TERM=xterm A=1 PATH=/image B=3 C=a=b"; got != want {
		t.Errorf("environment %q, want %q", got, want)
	}
}

// TestEnvironmentWithoutEnd: what an image may have of variables takes no time to speak of.
func TestEnvironmentWithoutEnd(t *testing.T) {
	var env []string
	for n := range 500_000 {
		env = append(env, strconv.Itoa(n%250_000)+"=") // each of them twice
	}
	if got := environment(&control.CreateArgs{}, ocispec.ImageConfig{Env: env}); len(got) != 250_002 {
		t.Errorf("%d variables", len(got))
	}
}

func TestCPUs(t *testing.T) {
	for nano, want := range map[int64]int64{10_000_000: 1000, 1_500_000_000: 150_000, 999_999e9: 99_999_900_000} {
		s, err := build(t, func(a *control.CreateArgs, _ *ocispec.Image) { a.NanoCPUs = nano })
		if err != nil || *s.Linux.Resources.CPU.Quota != want {
			t.Errorf("--cpus %g: quota %v, %v, want %d", float64(nano)/1e9, s, err, want)
		}
	}
}

func TestUlimitTwice(t *testing.T) {
	s, err := build(t, func(a *control.CreateArgs, _ *ocispec.Image) {
		a.Ulimits = []control.Ulimit{{Name: "nofile", Soft: 1, Hard: 2}, {Name: "core", Soft: -1, Hard: -1}, {Name: "nofile", Soft: 3, Hard: 4}}
	})
	if err != nil || len(s.Process.Rlimits) != 2 || s.Process.Rlimits[1].Soft != 3 {
		t.Errorf("rlimits %+v, %v", s.Process.Rlimits, err)
	}
}

func TestStopSignal(t *testing.T) {
	for _, c := range []struct{ own, image, want, text string }{
		{"", "", "", ""}, {"QUIT", "SIGTERM", "QUIT", ""}, {"", "SIGQUIT", "SIGQUIT", ""}, {"", "9", "9", ""},
		{"", "SIG\x1b[2J", "", "the image's config: stop signal"}, {"15", "nonsense", "15", ""},
		{"nonsense", "SIGTERM", "", "--stop-signal: signal \"nonsense\""}, {"0", "", "", "want 1 to 64"}, {"65", "", "", "want 1 to 64"},
	} {
		got, warnings, err := stopSignal(c.own, c.image)
		text := strings.Join(warnings, "")
		if err != nil {
			text = err.Error()
		}
		if got != c.want || (text == "") != (c.text == "") || !strings.Contains(text, c.text) {
			t.Errorf("stopSignal(%q, %q) = %q, %q, %v", c.own, c.image, got, warnings, err)
		}
	}
}

// TestSource: -v makes a directory that is missing, and takes a file as it is.
func TestSource(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		m    control.MountSpec
		text string
	}{
		{control.MountSpec{Type: "bind", Source: file, Create: true}, ""},
		{control.MountSpec{Type: "bind", Source: file}, ""},
		{control.MountSpec{Type: "bind", Source: filepath.Join(dir, "a/b"), Create: true}, ""},
		{control.MountSpec{Type: "bind", Source: filepath.Join(dir, "none")}, "there is no such file"},
		{control.MountSpec{Type: "bind", Source: filepath.Join(file, "x"), Create: true}, "--volume " + file + "/x"},
		{control.MountSpec{Type: "tmpfs"}, ""},
	} {
		if err := findSource(c.m); (err == nil) != (c.text == "") || err != nil && !strings.Contains(err.Error(), c.text) {
			t.Errorf("findSource(%+v): %v, want %q", c.m, err, c.text)
		}
	}
	if fi, err := os.Stat(filepath.Join(dir, "a/b")); err != nil || !fi.IsDir() {
		t.Error(fi, err)
	}
}

// TestBrief: what an image is called, runs and exposes, and what plugins say of its network, does not keep others from being listed.
func TestBrief(t *testing.T) {
	command := []string{"sh", "-c", strings.Repeat("x", 1<<20), "y"}
	e := &control.Endpoint{Routes: make([]control.Route, 1000), DNS: &control.DNS{Search: make([]string, 5000)}}
	row := control.Container{Command: command, Error: strings.Repeat("e", 1<<20), Exposed: make([]control.Port, 60_000), Endpoint: e}
	brief(&row)
	if e.Routes == nil || e.DNS == nil {
		t.Error("it is missing where it came from, too")
	}
	b, err := json.Marshal(row)
	if err != nil || len(b) > 16<<10 {
		t.Errorf("a row of %d bytes, %v", len(b), err)
	}
	if len(row.Command) != 3 || len(command[2]) != 1<<20 {
		t.Errorf("command %.40q of %.40q", row.Command, command)
	}
}

func TestCapabilities(t *testing.T) {
	for _, c := range []struct {
		add, drop string
		want      string // one that must be there
		not       string // one that must not
	}{
		{"", "chown", "CAP_KILL", "CAP_CHOWN"},
		{"sys_admin", "", "CAP_SYS_ADMIN", "CAP_NET_ADMIN"},
		{"CAP_NET_ADMIN", "all", "CAP_NET_ADMIN", "CAP_KILL"},
		{"ALL", "sys_admin", "CAP_BPF", "CAP_SYS_ADMIN"},
	} {
		s, err := build(t, func(a *control.CreateArgs, _ *ocispec.Image) {
			a.CapAdd, a.CapDrop = strings.Fields(c.add), strings.Fields(c.drop)
		})
		if err != nil {
			t.Errorf("add %q drop %q: %v", c.add, c.drop, err)
			continue
		}
		if got := s.Process.Capabilities.Bounding; !slices.Contains(got, c.want) || slices.Contains(got, c.not) {
			t.Errorf("add %q drop %q: %v", c.add, c.drop, got)
		}
	}
}

func TestRefusals(t *testing.T) {
	for want, change := range map[string]func(*control.CreateArgs){
		"unknown capab":    func(a *control.CreateArgs) { a.CapAdd = []string{"FLY"} },
		"minimum of 6MiB":  func(a *control.CreateArgs) { a.Memory = 1 },
		"soft limit":       func(a *control.CreateArgs) { a.Ulimits = []control.Ulimit{{Name: "nofile", Soft: 9, Hard: 3}} },
		"--security-opt x": func(a *control.CreateArgs) { a.SecurityOpt = []string{"x=y"} },
		"seccomp":          func(a *control.CreateArgs) { a.SecurityOpt = []string{"seccomp={"} },
		"want true or":     func(a *control.CreateArgs) { a.SecurityOpt = []string{"no-new-privileges=perhaps"} },
		"other than /":     func(a *control.CreateArgs) { a.Tmpfs = []string{"/x/.."} },
		"absolute path": func(a *control.CreateArgs) {
			a.Mounts = []control.MountSpec{{Type: "bind", Source: "rel", Target: "/t"}}
		},
		"bind or tmpfs":         func(a *control.CreateArgs) { a.Mounts = []control.MountSpec{{Type: "nfs", Target: "/t"}} },
		"duplicate mount":       func(a *control.CreateArgs) { a.Tmpfs = []string{"/t", "/t/"} },
		"--cgroup-parent":       func(a *control.CreateArgs) { a.CgroupParent = "x/../.." },
		"--ipc":                 func(a *control.CreateArgs) { a.IPC = "x" },
		"--uts":                 func(a *control.CreateArgs) { a.UTS = "container:x" },
		"needs --memory":        func(a *control.CreateArgs) { a.MemorySwap = 1 << 30 },
		"at least that of":      func(a *control.CreateArgs) { a.Memory, a.MemorySwap = 1<<30, 1<<20 },
		"--memory-reservation":  func(a *control.CreateArgs) { a.Memory, a.MemoryReservation = 1<<30, 1<<31 },
		"--cpuset-cpus":         func(a *control.CreateArgs) { a.CPUs = "3-1" },
		"--pids-limit":          func(a *control.CreateArgs) { a.PidsLimit = 1<<22 + 1 },
		"--cpuset-mems":         func(a *control.CreateArgs) { a.MemoryNodes = "a" },
		"--cpu-shares":          func(a *control.CreateArgs) { a.CPUShares = 1 },
		"--blkio-weight":        func(a *control.CreateArgs) { a.BlkioWeight = 1001 },
		"--oom-score-adj":       func(a *control.CreateArgs) { a.OOMScoreAdj = 5000 },
		"is not of a namespace": func(a *control.CreateArgs) { a.Sysctls = map[string]string{"kernel.panic": "1"} },
		"on the host's network": func(a *control.CreateArgs) {
			a.Network, a.Sysctls = "host", map[string]string{"net.ipv4.ip_forward": "1"}
		},
		"the host's IPC": func(a *control.CreateArgs) { a.IPC, a.Sysctls = "host", map[string]string{"kernel/shmmax": "1"} },
		"mount option":   func(a *control.CreateArgs) { a.Tmpfs = []string{"/t:a\\b"} },
	} {
		_, err := build(t, func(a *control.CreateArgs, _ *ocispec.Image) { change(a) })
		if e, ok := errors.AsType[*control.Error](err); !ok || !strings.Contains(e.Message, want) {
			t.Errorf("want an error with %q: %v", want, err)
		}
	}
}

func TestMountsReplaceDefaultsAndComeParentsFirst(t *testing.T) {
	s, err := build(t, func(a *control.CreateArgs, _ *ocispec.Image) {
		a.Mounts = []control.MountSpec{
			{Type: "bind", Source: "/h", Target: "/a/b/c"},
			{Type: "bind", Source: "/h", Target: "/a", ReadOnly: true, Options: []string{"rshared"}},
			{Type: "bind", Source: "/my/hosts", Target: "/etc/hosts"},
		}
		a.Tmpfs = []string{"/dev/shm:size=1m,mode=700"}
	})
	if err != nil {
		t.Fatal(err)
	}
	at := func(dest string) int {
		return slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == dest })
	}
	if a, b := at("/a"), at("/a/b/c"); a < 0 || b < a {
		t.Errorf("/a at %d, /a/b/c at %d", a, b)
	}
	if m := s.Mounts[at("/a")]; strings.Join(m.Options, ",") != "rbind,rshared,rro" {
		t.Errorf("/a: %v", m.Options)
	}
	if m := s.Mounts[at("/etc/hosts")]; m.Source != "/my/hosts" {
		t.Errorf("/etc/hosts comes from %s", m.Source)
	}
	if m := s.Mounts[at("/dev/shm")]; m.Source != "tmpfs" || !slices.Contains(m.Options, "size=1m") {
		t.Errorf("/dev/shm: %+v", m)
	}
	n := 0
	for _, m := range s.Mounts {
		if m.Destination == "/dev/shm" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("/dev/shm is mounted %d times", n)
	}
}

func TestLogOptions(t *testing.T) {
	for name, test := range map[string]struct {
		a    control.CreateArgs
		want monitor.LogOptions
		err  string
	}{
		"default":       {control.CreateArgs{}, monitor.LogOptions{}, ""},
		"limited":       {control.CreateArgs{LogDriver: "json-file", LogMaxSize: 10, LogMaxFiles: 3}, monitor.LogOptions{MaxSize: 10, MaxFiles: 3}, ""},
		"none":          {control.CreateArgs{LogDriver: "none"}, monitor.LogOptions{None: true}, ""},
		"none, limited": {control.CreateArgs{LogDriver: "none", LogMaxSize: 10}, monitor.LogOptions{}, "no log with --log-driver none"},
		"only files":    {control.CreateArgs{LogMaxFiles: 3}, monitor.LogOptions{}, "max-file=3: wants a max-size"},
		"too many":      {control.CreateArgs{LogMaxSize: 1, LogMaxFiles: 101}, monitor.LogOptions{}, "max-file of 1 to 100"},
		"negative":      {control.CreateArgs{LogMaxSize: -1}, monitor.LogOptions{}, "max-size of 0 or more"},
		"driver":        {control.CreateArgs{LogDriver: "syslog"}, monitor.LogOptions{}, `--log-driver "syslog"`},
	} {
		if got, err := logOptions(&test.a); got != test.want || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
			t.Errorf("%s: logOptions = %+v, %v; want %+v, %q", name, got, err, test.want, test.err)
		}
	}
}
