package integration

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// everyPath lists what is below the machine's directories, but what it serves by FUSE, which cannot be listed,
// and what is written in the background of containers and starts that there are.
func (m *machine) everyPath() (all []string) {
	m.Helper()
	for _, top := range []string{m.root, m.run} {
		must(m, filepath.WalkDir(top, func(path string, _ fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) { // since its directory was read
				return nil
			}
			all = append(all, path)
			if filepath.Dir(path) == filepath.Join(m.root, "containers") {
				return fs.SkipDir
			}
			switch path {
			case filepath.Join(m.run, "lazy"), filepath.Join(m.root, "starts"), filepath.Join(m.root, "profiles"):
				return fs.SkipDir
			}
			return err
		}))
	}
	return all
}

// less is a without b.
func less(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
}

func links(t testing.TB) (names []string) {
	t.Helper()
	list, err := net.Interfaces()
	must(t, err)
	for _, l := range list {
		names = append(names, l.Name)
	}
	return names
}

// TestDryRun: it shows what would be done, says why it could not be, and leaves nothing.
func TestDryRun(t *testing.T) {
	hub := newHub(t) // alone: others make links
	m, _ := userMachine(t, 4)
	ref, far := netImage(t, hub, "plan"), hub.put(t, "far", newImage(t, eStargz, someFiles(1960, "data", 3)))
	m.pull(ref, true) // what goes on in the background later is over
	m.ok("run", "-d", "--name", "web", "--network", "none", ref, "/inside", "wait")
	volume := filepath.Join(t.TempDir(), "made")
	shown := func(args ...string) string {
		t.Helper()
		nets, rows, list := links(t), m.ok("ps", "-a", "-q"), m.ok("images", "-q")
		var out string
		for n := 1; ; n++ { // what the daemon does in the background it does once
			paths := m.everyPath()
			out = m.ok(args...)
			now := m.everyPath()
			if slices.Equal(now, paths) {
				break
			}
			if n == 5 {
				t.Errorf("%q: it left %q, it took %q", args, less(now, paths), less(paths, now))
				break
			}
			t.Logf("something left %q, something took %q", less(now, paths), less(paths, now))
		}
		if now := links(t); !slices.Equal(now, nets) {
			t.Errorf("%q: links were %q, are %q", args, nets, now)
		}
		if now := m.ok("ps", "-a", "-q"); now != rows {
			t.Errorf("%q: containers were %q, are %q", args, rows, now)
		}
		if now := m.ok("images", "-q"); now != list {
			t.Errorf("%q: images were %q, are %q", args, list, now)
		}
		return out
	}
	has := func(out string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("without %q:\n%s", w, out)
			}
		}
	}
	full := []string{"run", "--dry-run", "--rm", "--userns", "auto", "-p", "127.0.0.1:9390:80", "-v", volume + ":/v:ro", "-m", "64m", "--device", "/dev/null:/dev/mine", "-u", "7:8", "-w", "/tmp", ref, "/inside", "a b"}
	out := shown(full...)
	has(out, "layers, here", "make the directory \""+volume, "network bridge, publish 127.0.0.1:9390:80/tcp", "users 16", "cgroup "+m.cgroup()+"/", "memory 67108864 bytes",
		"namespaces mount pid uts ipc network cgroup user", "device /dev/mine", "pivot_root", "chdir /tmp", "seccomp filter", `exec ["/inside" "a b"]`)
	// The second one is the same, but for the ID and the name that is made of it: nothing was given away.
	users := func(out string) string {
		i := strings.Index(out, "users ")
		return out[i : i+strings.IndexByte(out[i:], '\n')]
	}
	if again := shown(full...); users(again) != users(out) {
		t.Errorf("users were %q, and then %q", users(out), users(again))
	}
	if _, err := os.Stat(volume); err == nil {
		t.Error("it made the volume's directory")
	}
	has(shown("run", "--dry-run", "--network", "container:web", "--ipc", "container:web", ref, "/inside"), "join network /proc/", "join ipc /proc/", "/root/dev/shm")
	has(shown("create", "--dry-run", "--network", "host", far, "/inside"), "1 layers, to be fetched", "network host")
	var sp specs.Spec
	if err := json.Unmarshal([]byte(shown("--json", "run", "--dry-run", "--user", "me", ref, "/inside", "x")), &sp); err != nil || !slices.Equal(sp.Process.Args, []string{"/inside", "x"}) || sp.Process.User.Username != "me" {
		t.Errorf("%v, %+v", err, sp.Process)
	}
	m.ok("stop", "-t", "0", "web")
	for want, args := range map[string][]string{
		"name \"web\" is in use":      {"--name", "web", ref},
		"no such image":               {"--pull", "never", far},
		"does not run":                {"--network", "container:web", ref},
		"no such file or directory":   {"--mount", "type=bind,source=/none,target=/x", ref},
		"there is no such device":     {"--device", "/dev/none", ref},
		"less than the minimum":       {"-m", "1", ref},
		"network; use bridge, host":   {"--network", "mine", ref},
		"unknown capability":          {"--cap-add", "NOPE", ref},
		"test/nothing":                {strings.Replace(ref, "test/plan", "test/nothing", 1)},
		"only a container on the bri": {"--network", "none", "--ip", "10.0.0.1", ref},
	} {
		args = append(append([]string{"--name", "x"}, args...), "/inside")
		out := m.fails(append([]string{"run", "--dry-run"}, args...)...)
		if run := m.fails(append([]string{"run", "--rm"}, args...)...); out != run || !strings.Contains(out, want) {
			t.Errorf("%q: %q, want %q; without --dry-run %q", args, out, want, run)
		}
	}
}
