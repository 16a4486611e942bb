package oci

import (
	"encoding/json"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/snapfs/snapfs/runtime"
)

// FuzzSpec: a config.json, whatever is in it, becomes a plan that can be printed, or an error;
// and what it becomes is not much larger than it is.
func FuzzSpec(f *testing.F) {
	one := 1
	full := example()
	full.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/h", Timeout: &one}}}
	full.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1000, Size: 10}}
	full.Linux.GIDMappings = full.Linux.UIDMappings
	full.Linux.Namespaces = append(full.Linux.Namespaces, specs.LinuxNamespace{Type: "user"}, specs.LinuxNamespace{Type: "time"})
	full.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1}}
	full.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
	full.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "c", Major: 1, Minor: 3}}
	full.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux}
	full.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64}, ListenerPath: "/l", Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir"}, Action: specs.ActNotify, Args: []specs.LinuxSeccompArg{{Op: specs.OpEqualTo}}}}}
	full.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedOther}
	full.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE}
	full.Process.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0-3", Final: "1"}
	full.Mounts = append(full.Mounts, specs.Mount{Destination: "/v", Type: "bind", Source: "/", Options: []string{"rbind", "rro", "ridmap", "rslave"}})
	for _, s := range []*specs.Spec{example(), full} {
		b, err := json.Marshal(s)
		must(f, err)
		f.Add(b)
	}
	f.Add([]byte(`{"ociVersion":"1.0.0","process":{"args":["a"],"user":{"uid":4294967295}},"linux":{"namespaces":[{"type":"mount"}],"resources":{"unified":{"a.b":"c"}}}}`))
	c := &CLI{root: "/r"}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseSpec(b)
		if err != nil {
			return
		}
		sameAsJSON(t, b)
		p, err := c.plan(s, "x", "/b", false, false)
		if err != nil {
			return
		}
		if n := len(p.String()); n > 64<<10+20*len(b) {
			t.Errorf("a spec of %d bytes became a plan of %d", len(b), n)
		}
		if !strings.HasPrefix(p.Cgroup(), "/") || strings.Contains(p.Cgroup()+"/", "/../") {
			t.Errorf("cgroup %q", p.Cgroup())
		}
	})
}

// FuzzState: a state.json, whatever is in it, is read or refused.
func FuzzState(f *testing.F) {
	b, err := json.Marshal(record{ID: "x", Process: &runtime.Record{Pid: 1, Start: 2, First: 3, Steps: []string{"a"}}})
	must(f, err)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var r record
		if json.Unmarshal(b, &r) == nil && r.Process != nil && r.Process.Pid < 0 {
			if _, err := runtime.OpenPid(r.Process.Pid, r.Process.Start); err == nil {
				t.Errorf("process %d was found", r.Process.Pid)
			}
		}
	})
}

// FuzzArguments: no number, size or signal of a command line is taken for another.
func FuzzArguments(f *testing.F) {
	for _, s := range []string{"64m", "-1", "9223372036854775807", "SIGRTMIN+3", "TERM", "9", "1:2", "8g"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := size(s); err == nil && n < -1<<40 {
			t.Errorf("size(%q) = %d", s, n)
		}
		if n, err := parseSignal(s); err == nil && (n < 1 || n > 64) {
			t.Errorf("parseSignal(%q) = %d", s, n)
		}
		if n, err := parseID(s); err == nil && n > 1<<31-1 {
			t.Errorf("parseID(%q) = %d", s, n)
		}
	})
}
