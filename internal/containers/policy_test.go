package containers

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	profiles "github.com/moby/profiles/seccomp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/snapfs/snapfs/internal/control"
)

// Docker's defaults, to compare with: moby daemon/pkg/oci/defaults.go, v28. They are written
// down here again, so that a change of containerd's defaults or of ours does not change both.
var (
	mobyCapabilities = strings.Fields("CAP_CHOWN CAP_DAC_OVERRIDE CAP_FSETID CAP_FOWNER CAP_MKNOD CAP_NET_RAW CAP_SETGID " +
		"CAP_SETUID CAP_SETFCAP CAP_SETPCAP CAP_NET_BIND_SERVICE CAP_SYS_CHROOT CAP_KILL CAP_AUDIT_WRITE")
	mobyMasked = strings.Fields("/proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/timer_list " +
		"/proc/timer_stats /proc/sched_debug /proc/scsi /sys/firmware /sys/devices/virtual/powercap")
	mobyReadonly = strings.Fields("/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger")
)

// TestAsStrictAsDocker: nothing that Docker keeps from a container by default is let through.
func TestAsStrictAsDocker(t *testing.T) {
	s, err := build(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := s.Process.Capabilities
	for name, set := range map[string][]string{"bounding": c.Bounding, "permitted": c.Permitted, "effective": c.Effective, "inheritable": c.Inheritable, "ambient": c.Ambient} {
		for _, cap := range set {
			if !slices.Contains(mobyCapabilities, cap) || name == "inheritable" || name == "ambient" {
				t.Errorf("%s capability %s", name, cap)
			}
		}
	}
	for _, p := range mobyMasked {
		if !slices.Contains(s.Linux.MaskedPaths, p) {
			t.Errorf("%s can be seen", p)
		}
	}
	for _, p := range mobyReadonly {
		if !slices.Contains(s.Linux.ReadonlyPaths, p) {
			t.Errorf("%s can be written", p)
		}
	}
	for _, d := range s.Linux.Resources.Devices {
		if d.Allow && (d.Type == "b" || d.Type == "a" || d.Major == nil || d.Minor == nil && *d.Major != 136) && strings.Trim(d.Access, "m") != "" {
			t.Errorf("devices %+v are allowed", d)
		}
	}
	for _, m := range s.Mounts {
		if (m.Type == "sysfs" || m.Type == "cgroup") && !slices.Contains(m.Options, "ro") {
			t.Errorf("%s is writable", m.Destination)
		}
	}
	moby, err := profiles.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: mobyCapabilities}}})
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(s.Linux.Seccomp, moby) {
		t.Errorf("the filter is not the one that Docker has for its capabilities")
	}
	// What it must not have, if both became laxer.
	for _, rule := range s.Linux.Seccomp.Syscalls {
		for _, name := range rule.Names {
			if rule.Action == specs.ActAllow && slices.Contains(denied, name) {
				t.Errorf("%s is allowed", name)
			}
			for _, family := range []uint64{38, 40} { // AF_ALG, AF_VSOCK
				if name == "socket" && rule.Action == specs.ActAllow && matchesSocket(rule.Args, family) {
					t.Errorf("sockets of family %d are allowed", family)
				}
			}
		}
	}
}

// denied are calls by which the kernel has been reached too often.
var denied = strings.Fields("add_key bpf clone3 fsconfig fsmount fsopen fspick init_module finit_module io_uring_enter io_uring_register io_uring_setup " +
	"kexec_file_load kexec_load keyctl mount mount_setattr move_mount open_by_handle_at open_tree perf_event_open pivot_root quotactl reboot " +
	"request_key setns swapon umount umount2 unshare userfaultfd")

// matchesSocket tells whether a rule about socket's first argument lets a family through.
func matchesSocket(args []specs.LinuxSeccompArg, family uint64) bool {
	for _, a := range args {
		if a.Index != 0 {
			continue
		}
		ok := map[specs.LinuxSeccompOperator]bool{
			specs.OpEqualTo: family == a.Value, specs.OpNotEqual: family != a.Value, specs.OpLessThan: family < a.Value, specs.OpLessEqual: family <= a.Value,
			specs.OpGreaterThan: family > a.Value, specs.OpGreaterEqual: family >= a.Value, specs.OpMaskedEqual: family&a.Value == a.ValueTwo,
		}[a.Op]
		if !ok {
			return false
		}
	}
	return true
}

// TestImageChangesNothingOnTheHost: labels, volumes, the user and whatever else an image's
// config says reach the container's process, and nothing that happens on the host
// (CVE-2022-23648, CVE-2026-53488, CVE-2026-53492).
func TestImageChangesNothingOnTheHost(t *testing.T) {
	plain, err := build(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := build(t, func(_ *control.CreateArgs, i *ocispec.Image) {
		i.Config = ocispec.ImageConfig{
			User: "0:0", WorkingDir: "/../../proc/self/fd/7", StopSignal: "KILL", Cmd: []string{"/bin/sh"},
			ExposedPorts: map[string]struct{}{"1/tcp": {}},
			Volumes:      map[string]struct{}{"/etc": {}, "/../../etc": {}, "/proc/1/root": {}},
			Labels: map[string]string{"log-driver": "binary:///bin/sh", "containerd.io/restart.loguri": "binary:///bin/sh?-c=x",
				"cdi.k8s.io/x": "vendor.com/device=all", "io.containerd.cri.x": "y", "org.opencontainers.image.stopSignal": "9"},
			Env: []string{"LISTEN_FDS=3", "NOTIFY_SOCKET=/run/systemd/notify", "LD_PRELOAD=/evil.so"},
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Process.Env, s.Process.Cwd = plain.Process.Env, plain.Process.Cwd
	if !reflect.DeepEqual(s, plain) {
		t.Errorf("an image changed more than its process:\n%+v\n%+v", s, plain)
	}
}
