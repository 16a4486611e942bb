package containers

import (
	"errors"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/snapfs/snapfs/internal/control"
)

func TestHostOptions(t *testing.T) {
	s, err := build(t, func(a *control.CreateArgs, _ *ocispec.Image) {
		a.Network, a.Memory = "bridge", 64<<20
		a.HostOptions = control.HostOptions{
			Annotations: map[string]string{"a": "b"}, BlkioWeight: 300, CgroupParent: "/mine", CPUs: "0", MemoryNodes: "0", CPUShares: 7,
			MemoryReservation: 32 << 20, MemorySwap: -1, OOMScoreAdj: 9, ShmSize: 1 << 20, Sysctls: map[string]string{"net/ipv4/ping_group_range": "1 1"},
			UTS: "host", PID: "host",
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	r := s.Linux.Resources
	switch {
	case s.Annotations["a"] != "b":
		t.Errorf("annotations %v", s.Annotations)
	case *r.BlockIO.Weight != 300, r.CPU.Cpus != "0", r.CPU.Mems != "0", *r.CPU.Shares != 7:
		t.Errorf("limits %+v, %+v", r.BlockIO, r.CPU)
	case *r.Memory.Reservation != 32<<20, *r.Memory.Swap != -1, *r.Memory.Limit != 64<<20:
		t.Errorf("memory %+v", r.Memory)
	case *s.Process.OOMScoreAdj != 9:
		t.Errorf("oom_score_adj %d", *s.Process.OOMScoreAdj)
	case !strings.HasPrefix(s.Linux.CgroupsPath, "/mine/"):
		t.Errorf("cgroup %s", s.Linux.CgroupsPath)
	case s.Linux.Sysctl["net.ipv4.ping_group_range"] != "1 1", s.Linux.Sysctl["net.ipv4.ip_unprivileged_port_start"] != "0":
		t.Errorf("sysctls %v", s.Linux.Sysctl)
	case s.Hostname != "":
		t.Errorf("the host's name would be %q", s.Hostname)
	}
	for _, n := range s.Linux.Namespaces {
		if n.Type == specs.UTSNamespace || n.Type == specs.PIDNamespace {
			t.Errorf("it has a %s namespace", n.Type)
		}
	}
	shm := slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == "/dev/shm" })
	if o := s.Mounts[shm].Options; !slices.Contains(o, "size=1048576") || slices.Contains(o, "size=65536k") {
		t.Errorf("/dev/shm: %v", o)
	}
}

func TestHostIPC(t *testing.T) {
	s, err := build(t, func(a *control.CreateArgs, _ *ocispec.Image) { a.IPC = "host" })
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range s.Mounts {
		if m.Destination == "/dev/shm" && (m.Type != "bind" || m.Source != m.Destination) {
			t.Errorf("%+v is not the host's", m)
		}
	}
}

func TestPrivileged(t *testing.T) {
	s, err := build(t, func(a *control.CreateArgs, _ *ocispec.Image) { a.Privileged = true })
	if err != nil {
		t.Fatal(err)
	}
	if s.Linux.Seccomp != nil || len(s.Linux.MaskedPaths)+len(s.Linux.ReadonlyPaths) > 0 || !slices.Contains(s.Process.Capabilities.Effective, "CAP_SYS_ADMIN") {
		t.Errorf("seccomp %v, masked %v, read-only %v, capabilities %v", s.Linux.Seccomp, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths, s.Process.Capabilities.Effective)
	}
	for _, m := range s.Mounts {
		if (m.Type == "sysfs" || m.Type == "cgroup") && slices.Contains(m.Options, "ro") {
			t.Errorf("%+v is read-only", m)
		}
	}
	if d := s.Linux.Resources.Devices; len(d) != 1 || !d[0].Allow || d[0].Access != "rwm" {
		t.Errorf("devices %+v", d)
	}
}

func TestDevices(t *testing.T) {
	s, err := build(t, func(*control.CreateArgs, *ocispec.Image) {})
	if err != nil {
		t.Fatal(err)
	}
	a := &control.CreateArgs{HostOptions: control.HostOptions{Devices: []control.Device{{Host: "/dev/full", Inside: "/dev/x", Access: "rw"}}}}
	if err := devices(s, a); err != nil {
		t.Fatal(err)
	}
	d := s.Linux.Devices[len(s.Linux.Devices)-1]
	rule := s.Linux.Resources.Devices[len(s.Linux.Resources.Devices)-1]
	if d.Path != "/dev/x" || d.Major != 1 || d.Minor != 7 || rule.Access != "rw" || *rule.Major != 1 || *rule.Minor != 7 || !rule.Allow {
		t.Errorf("device %+v, rule %+v", d, rule)
	}
	for want, d := range map[string]control.Device{
		"there is no such": {Host: "/dev/nonexistent", Inside: "/dev/x", Access: "r"},
		"is no device":     {Host: "/proc/version", Inside: "/dev/x", Access: "r"},
		"letters":          {Host: "/dev/full", Inside: "/dev/x", Access: "x"},
		"absolute":         {Host: "dev/full", Inside: "/dev/x", Access: "r"},
	} {
		err := devices(s, &control.CreateArgs{HostOptions: control.HostOptions{Devices: []control.Device{d}}})
		if e, ok := errors.AsType[*control.Error](err); !ok || !strings.Contains(e.Message, want) {
			t.Errorf("%+v: %v, want an error with %q", d, err, want)
		}
	}
}

func TestSets(t *testing.T) {
	for _, c := range []struct {
		set, other string
		want       bool
	}{{"0", "0-3", true}, {"0-3", "0-3", true}, {"1,3", "0-1,3", true}, {"4", "0-3", false}, {"0-4", "0-3", false}, {"2", "0-1,3", false}, {"65535", "0-65535", true}} {
		if got := within(c.set, c.other); got != c.want {
			t.Errorf("within(%q, %q) = %t", c.set, c.other, got)
		}
	}
	err := checkSets(&control.CreateArgs{HostOptions: control.HostOptions{CPUs: "0,65535"}})
	if e, ok := errors.AsType[*control.Error](err); !ok || !strings.Contains(e.Message, "this machine has the CPUs 0") {
		t.Errorf("a CPU that is not there: %v", err)
	}
}
