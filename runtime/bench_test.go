package runtime

import (
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// BenchmarkStart starts a container of the usual kind, with Docker's profile from
// the cache, and waits for its end. Op is until the program was executed.
func BenchmarkStart(b *testing.B) {
	needRoot(b)
	for _, c := range []struct {
		name   string
		change func(*specs.Spec)
	}{
		{"full", func(*specs.Spec) {}},
		{"no seccomp", func(s *specs.Spec) { s.Linux.Seccomp = nil }},
		{"host network", func(s *specs.Spec) { s.Linux.Namespaces = without(s.Linux.Namespaces, specs.NetworkNamespace) }},
	} {
		b.Run(c.name, func(b *testing.B) { benchStart(b, c.change, 0) })
	}
	// After some quiet, a migration between cgroups would cost about 10 ms.
	b.Run("full after 50 ms", func(b *testing.B) { benchStart(b, func(*specs.Spec) {}, 50*time.Millisecond) })
}

func benchStart(b *testing.B, change func(*specs.Spec), quiet time.Duration) {
	s := newSpec(b, newRoot(b), "exit", "0")
	change(s)
	o := options(b)
	o.SeccompCache = b.TempDir()
	for b.Loop() {
		b.StopTimer()
		time.Sleep(quiet)
		b.StartTimer()
		p, err := NewPlan(s, o)
		if err != nil {
			b.Fatal(err)
		}
		c, err := Start(b.Context(), p, Files{})
		b.StopTimer()
		if err != nil {
			b.Fatal(err)
		}
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func without(list []specs.LinuxNamespace, kind specs.LinuxNamespaceType) []specs.LinuxNamespace {
	var out []specs.LinuxNamespace
	for _, n := range list {
		if n.Type != kind {
			out = append(out, n)
		}
	}
	return out
}

// BenchmarkExec starts a further process in a container that runs.
func BenchmarkExec(b *testing.B) {
	c := begin(b, newSpec(b, newRoot(b), "sleep"), options(b))
	proc := &specs.Process{Args: []string{"/inside", "exit", "0"}, Cwd: "/", Env: []string{"HOME=/"}}
	for b.Loop() {
		p, err := c.Exec(b.Context(), proc, Files{})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if _, err := p.Wait(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
