package oci

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/runtime"
	"github.com/snapfs/snapfs/runtime/cgroups"
	"github.com/snapfs/snapfs/runtime/seccomp"
)

func ps(ctx context.Context, c *CLI, args []string) error {
	f := c.flags("ps", "[options] ID [PS-OPTION...]")
	format := text2(f, "format", "f", "table", "table or json")
	rest, err := arguments(f, args, 1, -1)
	if err != nil {
		return err
	}
	k, err := c.open(rest[0])
	if err != nil {
		return err
	}
	g, err := cgroups.Open(k.Cgroup)
	if err != nil {
		return err
	}
	pids, err := g.Procs()
	if err = errors.Join(err, g.Release()); err != nil {
		return err
	}
	slices.Sort(pids)
	switch *format {
	case "json":
		if pids == nil {
			pids = []int{}
		}
		b, err := json.Marshal(pids)
		if err != nil {
			return err
		}
		_, err = c.Stdout.Write(append(b, '\n'))
		return err
	case "table":
		return c.psTable(ctx, pids, rest[1:])
	}
	return fmt.Errorf("ps: --format %q: want table or json", *format)
}

// psTable shows the lines of the machine's ps that are about some processes.
func (c *CLI) psTable(ctx context.Context, pids []int, options []string) error {
	if len(options) == 0 {
		options = []string{"-ef"}
	}
	out, err := exec.CommandContext(ctx, "ps", options...).Output()
	if err != nil {
		return fmt.Errorf("ps %s: %w", strings.Join(options, " "), err)
	}
	column := -1
	var b bytes.Buffer
	for sc := bufio.NewScanner(bytes.NewReader(out)); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		if column < 0 {
			if column = slices.Index(fields, "PID"); column < 0 {
				return errors.New("ps: it shows no column PID")
			}
			fmt.Fprintln(&b, sc.Text())
			continue
		}
		if len(fields) <= column {
			continue
		}
		if pid, err := strconv.Atoi(fields[column]); err == nil && slices.Contains(pids, pid) {
			fmt.Fprintln(&b, sc.Text())
		}
	}
	_, err = c.Stdout.Write(b.Bytes())
	return err
}

// showFeatures tells what NewPlan takes; what it refuses is not there or false.
func showFeatures(_ context.Context, c *CLI, args []string) error {
	if _, err := arguments(c.flags("features", ""), args, 0, 0); err != nil {
		return err
	}
	yes, no := true, false
	modes, flags := runtime.MemoryPolicies()
	return c.printJSON(features.Features{
		OCIVersionMin: "1.0.0", OCIVersionMax: specs.Version,
		Hooks:        []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"},
		MountOptions: runtime.MountOptions(),
		Linux: &features.Linux{
			Namespaces:   runtime.Namespaces(),
			Capabilities: runtime.Capabilities(),
			Cgroup:       &features.Cgroup{V1: &yes, V2: &yes, Systemd: &yes, SystemdUser: &no, Rdma: &yes},
			Seccomp: &features.Seccomp{
				Enabled: &yes, Actions: seccomp.Actions(), Operators: seccomp.Operators(), Archs: seccomp.Archs(),
				KnownFlags: seccomp.Flags(), SupportedFlags: seccomp.Flags(),
			},
			Apparmor: &features.Apparmor{Enabled: &yes}, Selinux: &features.Selinux{Enabled: &yes},
			IntelRdt:        &features.IntelRdt{Enabled: &no, Schemata: &no, Monitoring: &no},
			MemoryPolicy:    &features.MemoryPolicy{Modes: modes, Flags: flags},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &yes}},
			NetDevices:      &features.NetDevices{Enabled: &yes},
		},
		Annotations: map[string]string{"io.github.snapfs.runtime.version": c.Version},
	})
}

// spec writes a config.json to begin with.
func spec(_ context.Context, c *CLI, args []string) error {
	f := c.flags("spec", "[options]")
	bundle := text2(f, "bundle", "b", "", "`DIR` to write config.json to")
	rootless := f.Bool("rootless", false, "refused: it takes root")
	if _, err := arguments(f, args, 0, 0); err != nil {
		return err
	}
	if *rootless {
		return errors.New("spec: --rootless: not supported")
	}
	b, err := json.MarshalIndent(example(), "", "\t")
	if err != nil {
		return err
	}
	name := filepath.Join(*bundle, configFile)
	out, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = out.Write(append(b, '\n'))
	return errors.Join(err, out.Close())
}

// example is a spec as of runc's spec.
func example() *specs.Spec {
	caps := []string{"CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"}
	none := []string{"nosuid", "noexec", "nodev"}
	s := &specs.Spec{
		Version: specs.Version, Hostname: "snaprun", Root: &specs.Root{Path: "rootfs", Readonly: true},
		Process: &specs.Process{
			Terminal: true, Args: []string{"sh"}, Cwd: "/", NoNewPrivileges: true,
			Env:          []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Permitted: caps, Effective: caps},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1024, Soft: 1024}},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: append(slices.Clone(none), "mode=1777", "size=65536k")},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: none},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: append(slices.Clone(none), "ro")},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: append(slices.Clone(none), "relatime", "ro")},
		},
		Linux: &specs.Linux{
			Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			MaskedPaths: []string{"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
				"/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/sys/devices/virtual/powercap", "/proc/scsi"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
	for _, n := range []specs.LinuxNamespaceType{specs.PIDNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.MountNamespace, specs.CgroupNamespace} {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: n})
	}
	return s
}

// withGroup opens the cgroup of a container that has a process.
func (c *CLI) withGroup(id string, do func(*container, *cgroups.Group) error) error {
	k, err := c.open(id)
	if err != nil {
		return err
	}
	status, fd, err := k.status()
	if err != nil {
		return err
	}
	if fd < 0 {
		return fmt.Errorf("%s: %w (it is %s)", id, errNotRunning, status)
	}
	unix.Close(fd)
	g, err := cgroups.Open(k.Cgroup)
	if err != nil {
		return err
	}
	return errors.Join(do(k, g), g.Release())
}
