package oci

import (
	"encoding/json"
	"testing"

	profile "github.com/moby/profiles/seccomp"
)

// BenchmarkSpec reads a config.json with Docker's profile, and plans it.
func BenchmarkSpec(b *testing.B) {
	s := example()
	p, err := profile.GetDefaultProfile(s)
	must(b, err)
	s.Linux.Seccomp = p
	j, err := json.Marshal(s)
	must(b, err)
	c := &CLI{root: b.TempDir()}
	b.Run("parse", func(b *testing.B) {
		b.SetBytes(int64(len(j)))
		b.ReportAllocs()
		for b.Loop() {
			_, err := parseSpec(j)
			must(b, err)
		}
	})
	b.Run("plan", func(b *testing.B) {
		s, err := parseSpec(j)
		must(b, err)
		b.ReportAllocs()
		for b.Loop() {
			_, err := c.plan(s, "x", "/b", false, false)
			must(b, err)
		}
	})
}
