package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/snapfs/snapfs/integration/vm"
)

// inVM names the tests that run on Debian's stock kernel, which has version 2 of cgroups with all
// its controllers, and no version 1. Whoever skips there has to be among those that may.
var inVM = []struct {
	pkg, run string
	may      string // skip
}{
	{"./runtime/cgroups", ".", "^TestDefaultDevicesAreWritten$"},
	{"./runtime", "^(TestPidsLimit|TestMemoryLimit|TestUpdate|TestMembership|TestNothingIsLeft|TestExec|TestPause|TestKillAndClose|TestDevices|TestAllowedDevice|TestUnified.*|TestDeleg.*|TestV2.*)$", "^$"},
	{"./runtime/oci", "^(TestV2.*|TestUserNamespace|TestCgroupReadOnly|TestCgroupOfAnother|TestHooks|TestGoRuncRun)$", "^$"},
	{"./integration", "^(TestOrdinaryDirectories|TestContainerLimits|TestNetwork)$", "^$"},
}

// kernelModules are what Debian has as modules of what the tests use.
var kernelModules = []string{"overlay", "fuse", "erofs", "loop", "veth", "bridge", "nf_tables", "nft_chain_nat", "nft_ct", "nft_masq", "nft_nat", "nft_fib_inet",
	"nft_meta_bridge", "nf_conntrack_bridge", "xfrm_user"}

// TestKernel61 runs tests on another kernel than this machine's.
func TestKernel61(t *testing.T) {
	if race || flag.Lookup("test.run").Value.String() == "" {
		t.Skip("it runs by itself, as the machine it makes is slow: go test ./integration -run TestKernel61 (make test does)")
	}
	kernel, release, err := vm.Kernel()
	if err != nil {
		t.Skip(err)
	}
	m := vm.Machine{Kernel: kernel, Modules: kernelModules, Memory: 1536}
	box, err := vm.Busybox(t.Context())
	if err != nil {
		t.Skip(err)
	}
	m.Files = box
	dir := t.TempDir()
	m.Guest = filepath.Join(dir, "guest")
	goBuild(t, "build", m.Guest, "./integration/vm/guest")
	for name, pkg := range map[string]string{"snapd": "./cmd/snapd", "snapctl": "./cmd/snapctl", "inside": "./runtime/testdata/inside", "inside-image": "./integration/testdata/inside"} {
		addProgram(t, &m, dir, "programs/"+name, "build", pkg)
	}
	m.Files = append(m.Files, vm.File{Name: "programs/snaprun", Mode: fs.ModeSymlink | 0o777, Data: []byte("snapctl")})
	for _, v := range inVM {
		name := "tests/" + filepath.Base(v.pkg)
		addProgram(t, &m, dir, name, "test", v.pkg)
		m.Jobs = append(m.Jobs, vm.Job{
			Name: v.pkg, Args: []string{"/" + name, "-test.v=test2json", "-test.timeout=4m", "-test.run=" + v.run},
			Env: []string{"SNAPFS_TEST_PROGRAMS=/programs", "SNAPFS_TEST_BACKEND=directories"}, Dir: "/tmp",
		})
	}
	began := time.Now()
	limit := 8 * time.Minute
	if end, ok := t.Deadline(); ok {
		limit = min(limit, time.Until(end)-30*time.Second)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), limit, fmt.Errorf("it takes more than %v", limit.Round(time.Second)))
	defer cancel()
	results, err := m.Run(ctx, dir)
	t.Logf("Linux %s, %s", release, time.Since(began).Round(time.Second))
	if err != nil {
		t.Error(err)
	}
	for i, v := range inVM {
		t.Run(strings.TrimPrefix(v.pkg, "./"), func(t *testing.T) {
			if i >= len(results) {
				t.Fatal("the machine did not get here")
			}
			showTests(t, results[i], regexp.MustCompile(v.may))
		})
	}
}

// addProgram builds a program for the machine.
func addProgram(t *testing.T, m *vm.Machine, dir, name, verb, pkg string) {
	t.Helper()
	out := filepath.Join(dir, strings.ReplaceAll(name, "/", "-"))
	goBuild(t, verb, out, pkg)
	f, err := vm.HostFile(name, out, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	m.Files = append(m.Files, f)
}

// goBuild builds a program, or with the verb "test" a package's tests.
func goBuild(t *testing.T, verb, out, pkg string) {
	t.Helper()
	args := []string{verb, "-ldflags=-s -w", "-o", out, pkg}
	if verb == "test" {
		args = append([]string{verb, "-c"}, args[1:]...)
	}
	c := exec.CommandContext(t.Context(), "go", args...)
	c.Dir = ".."
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := c.CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, b)
	}
}

// An outcome is what became of one test and of those in it.
type outcome struct {
	action string // pass, fail or skip; "": it did not end
	output strings.Builder
	skips  []string // of tests in it, by whole name
}

// showTests makes tests of a job's output, so that what failed there fails here.
func showTests(t *testing.T, r vm.Result, may *regexp.Regexp) {
	tests, order, rest := readTests(t, r.Output)
	ok := true
	for _, name := range order {
		o := tests[name]
		ok = t.Run(name, func(t *testing.T) {
			switch {
			case o.action == "":
				t.Errorf("it did not end:\n%s", o.output.String())
			case o.action == "fail":
				t.Errorf("%s", o.output.String())
			case o.action == "skip" && may.MatchString(name):
				t.Skip(o.output.String())
			case o.action == "skip":
				t.Errorf("skipped, on a machine that has what it needs:\n%s", o.output.String())
			}
			for _, s := range o.skips {
				if !may.MatchString(s) {
					t.Errorf("%s was skipped, on a machine that has what it needs:\n%s", s, o.output.String())
				}
			}
		}) && ok
	}
	switch {
	case !r.Ended:
		t.Errorf("the machine ended before it, at:\n%s", last(rest, 4000))
	case r.Status != 0 && ok: // of no test's doing
		t.Errorf("exit status %d:\n%s", r.Status, last(rest, 4000))
	case len(order) == 0:
		t.Errorf("no test ran:\n%s", last(rest, 4000))
	}
	t.Logf("%d tests in %v", len(order), time.Duration(r.Ms)*time.Millisecond)
}

// readTests has go tool test2json read what a test program has written.
func readTests(t *testing.T, output []byte) (tests map[string]*outcome, order []string, rest string) {
	t.Helper()
	c := exec.CommandContext(t.Context(), "go", "tool", "test2json")
	c.Stdin = bytes.NewReader(output)
	b, err := c.Output()
	if err != nil {
		t.Fatalf("go tool test2json: %v", err)
	}
	tests = map[string]*outcome{}
	var other strings.Builder
	for d := json.NewDecoder(bytes.NewReader(b)); ; {
		var e struct{ Action, Test, Output string }
		if err := d.Decode(&e); errors.Is(err, io.EOF) {
			return tests, order, other.String()
		} else if err != nil {
			t.Fatal(err)
		}
		top, _, inner := strings.Cut(e.Test, "/")
		if e.Action == "output" {
			other.WriteString(e.Output)
		}
		if top == "" {
			continue
		}
		o := tests[top]
		if o == nil {
			o = new(outcome)
			tests[top], order = o, append(order, top)
		}
		switch e.Action {
		case "output":
			o.output.WriteString(e.Output)
		case "skip":
			if inner {
				o.skips = append(o.skips, e.Test)
			} else {
				o.action = e.Action
			}
		case "pass", "fail":
			if !inner {
				o.action = e.Action
			}
		}
	}
}

func last(s string, n int) string { return s[max(0, len(s)-n):] }

// TestReadTests: of what a test program writes, what failed is seen, and what did not end.
func TestReadTests(t *testing.T) {
	const v = "\x16"
	out := v + "=== RUN   TestA\n    a_test.go:1: said\n" + v + "--- PASS: TestA (0.00s)\n" +
		v + "=== RUN   TestB\n" + v + "=== RUN   TestB/x\n    why\n" + v + "--- SKIP: TestB/x (0.00s)\n" + v + "--- FAIL: TestB (0.01s)\n" +
		v + "=== RUN   TestC\npanic: test timed out after 4m0s\n"
	tests, order, rest := readTests(t, []byte(out))
	got := fmt.Sprint(order)
	for _, name := range order {
		got += fmt.Sprintf(" %s=%s%v", name, tests[name].action, tests[name].skips)
	}
	if want := "[TestA TestB TestC] TestA=pass[] TestB=fail[TestB/x] TestC=[]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if !strings.Contains(rest, "timed out") {
		t.Errorf("what was written is %q", rest)
	}
}
