package containers

import (
	"encoding/json"
	"path"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime"
)

// FuzzImage: whatever an image's config says, a container with the default
// options has the default limits on what it reaches, and nothing of the host.
func FuzzImage(f *testing.F) {
	f.Add([]byte(`{"config":{"User":"0","Env":["A=b","C"],"Cmd":["x"],"WorkingDir":"../..","Volumes":{"/etc":{}},"ExposedPorts":{"1-9/tcp":{},"x":{}},"Labels":{"a":"b"},"StopSignal":"KILL"}}`))
	f.Add([]byte(`{"config":{"Entrypoint":[""],"Cmd":null,"Healthcheck":{"Test":["CMD-SHELL","x"]},"Shell":["a"]}}`))
	want, err := build(f, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var image ocispec.Image
		if json.Unmarshal(b, &image) != nil {
			return
		}
		a := &control.CreateArgs{ID: strings.Repeat("ab", 32), Network: "none"}
		s := &Service{}
		if _, warnings, err := s.network(a, image.Config.ExposedPorts); err != nil || len(warnings) > maxWarnings {
			t.Skip(err)
		}
		a.Hostname = "h"
		if _, _, err := healthcheck(a, b); err != nil {
			t.Errorf("healthcheck: %v", err) // it is the image's: a warning
		}
		got, err := spec(a, &image, "/state/c", "/snapfs")
		if err != nil {
			return
		}
		p := *got.Process
		for _, kv := range p.Env {
			if name, _, ok := strings.Cut(kv, "="); !ok || name == "" {
				t.Errorf("variable %q", kv)
			}
		}
		if !path.IsAbs(p.Cwd) || path.Clean(p.Cwd) != p.Cwd {
			t.Errorf("working directory %q", p.Cwd)
		}
		p.Args, p.Env, p.Cwd = want.Process.Args, want.Process.Env, want.Process.Cwd
		got.Process = &p
		if x, y := marshal(t, got), marshal(t, want); x != y {
			t.Errorf("%s changed more than what is run:\n%s\n%s", b, x, y)
		}
	})
}

func marshal(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// FuzzCreate: whatever a client asks for, what comes of it is a plan or an error,
// and what binds the host's files was asked for.
func FuzzCreate(f *testing.F) {
	f.Add([]byte(`{"Args":["x"],"Mounts":[{"Type":"bind","Source":"/a","Target":"/b","Options":["shared"]}],"Tmpfs":["/t:size=1m"],"Memory":9999999,"NanoCPUs":15,"CapAdd":["all"],"SecurityOpt":["seccomp=unconfined"]}`))
	f.Add([]byte(`{"Args":["x"],"IPC":"host","UTS":"host","PID":"host","Network":"host","Sysctls":{"kernel.sem":"1"},"CPUs":"0-3","Ulimits":[{"Name":"nofile","Soft":-1,"Hard":-1}],"Privileged":true,"CgroupParent":"/x"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var a control.CreateArgs
		if json.Unmarshal(b, &a) != nil {
			return
		}
		a.ID, a.Devices = strings.Repeat("ab", 32), nil // devices are looked up on the host
		service := &Service{}
		if _, _, err := service.network(&a, nil); err != nil {
			return
		}
		if _, err := logOptions(&a); err != nil {
			return
		}
		if _, _, err := healthcheck(&a, []byte("{}")); err != nil {
			return
		}
		s, err := spec(&a, &ocispec.Image{}, "/state/c", "/snapfs")
		if err != nil {
			return
		}
		for _, m := range s.Mounts {
			asked := slices.ContainsFunc(a.Mounts, func(x control.MountSpec) bool { return x.Type == "bind" && x.Source == m.Source })
			if m.Type == "bind" && !asked && !strings.HasPrefix(m.Source, "/state/c/") && !(m.Source == "/dev/shm" && a.IPC == ofHost) {
				t.Errorf("%s binds %s", b, m.Source)
			}
		}
		unconfined := slices.ContainsFunc(a.SecurityOpt, func(o string) bool { return strings.Contains(o, "seccomp") })
		if !a.Privileged && (len(s.Linux.MaskedPaths) < len(dockerMasked) || s.Linux.Seccomp == nil && !unconfined) {
			t.Errorf("%s: the defaults are gone", b)
		}
		p, err := runtime.NewPlan(s, runtime.Options{ID: a.ID})
		if err == nil {
			_ = p.String()
		}
	})
}
