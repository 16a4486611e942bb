package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	ctrcontainers "github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/snapfs/snapfs/internal/control"
)

// This file has what control.HostOptions mean.

// Of the modes of namespaces, beside "container:NAME".
const (
	ofHost  = "host"
	private = "private"
)

// shareNamespaces leaves out those that are the host's. Those of other
// containers are put in when they are known, at every start.
func shareNamespaces(s *specs.Spec, a *control.CreateArgs) error {
	for _, n := range []struct {
		flag, mode string
		kind       specs.LinuxNamespaceType
		joins      bool
	}{
		{"--ipc", a.IPC, specs.IPCNamespace, true},
		{"--pid", a.PID, specs.PIDNamespace, true},
		{"--uts", a.UTS, specs.UTSNamespace, false},
		{"--network", a.Network, specs.NetworkNamespace, true},
	} {
		_, other := control.OtherContainer(n.mode)
		switch {
		case n.mode == ofHost:
			s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(x specs.LinuxNamespace) bool { return x.Type == n.kind })
		case n.mode == "", n.mode == private, n.kind == specs.NetworkNamespace, other && n.joins:
		case n.joins:
			return invalid("%s %q: want host, private or container:NAME", n.flag, n.mode)
		default:
			return invalid("%s %q: want host or private", n.flag, n.mode)
		}
	}
	if a.UTS == ofHost {
		s.Hostname = ""
	}
	return nil
}

// moreResources are the limits beyond memory, CPUs and pids.
func moreResources(s *specs.Spec, a *control.CreateArgs) error {
	r := s.Linux.Resources
	switch {
	case a.MemorySwap != 0 && a.Memory == 0:
		return invalid("--memory-swap: is the limit of memory and swap together: it needs --memory, too")
	case a.MemorySwap < -1 || a.MemorySwap > 0 && a.MemorySwap < a.Memory:
		return invalid("--memory-swap %d: is the limit of memory and swap together: want at least that of --memory, or -1 for none", a.MemorySwap)
	case a.MemorySwap != 0:
		r.Memory.Swap = &a.MemorySwap
	}
	if n := a.MemoryReservation; n != 0 {
		if n < 0 || a.Memory != 0 && n > a.Memory {
			return invalid("--memory-reservation %d: want no more than --memory", n)
		}
		if r.Memory == nil {
			r.Memory = &specs.LinuxMemory{}
		}
		r.Memory.Reservation = &n
	}
	if a.CPUs != "" || a.MemoryNodes != "" || a.CPUShares != 0 {
		if r.CPU == nil {
			r.CPU = &specs.LinuxCPU{}
		}
		r.CPU.Cpus, r.CPU.Mems = a.CPUs, a.MemoryNodes
		if a.CPUShares != 0 {
			r.CPU.Shares = &a.CPUShares
		}
	}
	for flag, set := range map[string]string{"--cpuset-cpus": a.CPUs, "--cpuset-mems": a.MemoryNodes} {
		if set != "" && !isSet(set) {
			return invalid("%s %q: want numbers and ranges, such as 0-3,5", flag, set)
		}
	}
	if n := a.CPUShares; n != 0 && (n < 2 || n > 262144) {
		return invalid("--cpu-shares %d: want 2 to 262144", n)
	}
	if n := a.BlkioWeight; n != 0 {
		if n < 10 || n > 1000 {
			return invalid("--blkio-weight %d: want 10 to 1000", n)
		}
		r.BlockIO = &specs.LinuxBlockIO{Weight: &n}
	}
	if n := a.OOMScoreAdj; n != 0 {
		if n < -1000 || n > 1000 {
			return invalid("--oom-score-adj %d: want -1000 to 1000", n)
		}
		s.Process.OOMScoreAdj = &n
	}
	return nil
}

// onlineCPUs and onlineNodes say what cpusets can be made of, in their form.
const (
	onlineCPUs  = "/sys/devices/system/cpu/online"
	onlineNodes = "/sys/devices/system/node/online"
)

// checkSets refuses CPUs and nodes that this machine does not have.
func checkSets(a *control.CreateArgs) error {
	for _, c := range []struct{ flag, set, online, what string }{
		{"--cpuset-cpus", a.CPUs, onlineCPUs, "CPUs"},
		{"--cpuset-mems", a.MemoryNodes, onlineNodes, "memory nodes"},
	} {
		online := strings.TrimSpace(string(readSmall(c.online)))
		if c.set != "" && isSet(c.set) && isSet(online) && !within(c.set, online) {
			return invalid("%s %q: this machine has the %s %s", c.flag, c.set, c.what, online)
		}
	}
	return nil
}

// within says whether all of a set are in another one.
func within(set, other string) bool {
	has := map[uint64]bool{}
	members(other, func(n uint64) bool { has[n] = true; return true })
	return members(set, func(n uint64) bool { return has[n] })
}

// members calls f with what is in a set until it returns false.
func members(set string, f func(uint64) bool) bool {
	for part := range strings.SplitSeq(set, ",") {
		from, to, two := strings.Cut(part, "-")
		if !two {
			to = from
		}
		n, _ := strconv.ParseUint(from, 10, 16)
		last, _ := strconv.ParseUint(to, 10, 16)
		for ; n <= last; n++ {
			if !f(n) {
				return false
			}
		}
	}
	return true
}

// isSet says whether s is a list of numbers and ranges, as cpuset(7) has it.
func isSet(s string) bool {
	for part := range strings.SplitSeq(s, ",") {
		from, to, two := strings.Cut(part, "-")
		if !two {
			to = from
		}
		a, err1 := strconv.ParseUint(from, 10, 16)
		b, err2 := strconv.ParseUint(to, 10, 16)
		if err1 != nil || err2 != nil || a > b {
			return false
		}
	}
	return true
}

// privileged takes away what keeps a container from the machine: it is for
// containers that are trusted like root. Its devices are the host's, see devices.
func privileged(s *specs.Spec, a *control.CreateArgs) error {
	if !a.Privileged {
		return nil
	}
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
	return apply(s, oci.WithWriteableSysfs, oci.WithWriteableCgroupfs, oci.WithAllDevicesAllowed)
}

func apply(s *specs.Spec, opts ...oci.SpecOpts) error {
	for _, o := range opts {
		if err := o(context.Background(), nil, &ctrcontainers.Container{}, s); err != nil {
			return err
		}
	}
	return nil
}

// pingGroups is the sysctl that says which groups may ping, and allGroups its value for all.
const (
	pingGroups = "net.ipv4.ping_group_range"
	allGroups  = "0 2147483647"
)

// sysctls are those asked for and, in a network namespace of its own, Docker's:
// any user may listen at any port and ping (moby daemon/oci_linux.go, v28).
func sysctls(s *specs.Spec, a *control.CreateArgs) error {
	list := map[string]string{}
	if _, byPlugins := control.OfPlugins(a.Network); byPlugins || a.Network == control.NetworkBridge || a.Network == control.NetworkNone {
		list["net.ipv4.ip_unprivileged_port_start"] = "0"
		list[pingGroups] = allGroups
	}
	for name, value := range a.Sysctls {
		dotted := strings.ReplaceAll(name, "/", ".")
		switch {
		case strings.ContainsAny(name+value, "\x00\n"):
			return invalid("--sysctl %q", name)
		case strings.HasPrefix(dotted, "net."):
			if a.Network == control.NetworkHost {
				return invalid("--sysctl %s: on the host's network it would change the host", name)
			}
		case strings.HasPrefix(dotted, "fs.mqueue."), slices.Contains(ipcSysctls, dotted):
			if a.IPC == ofHost {
				return invalid("--sysctl %s: with the host's IPC namespace it would change the host", name)
			}
		default:
			return invalid("--sysctl %s: is not of a namespace, so it would change the host; set it there with sysctl(8)", name)
		}
		list[dotted] = value
	}
	if len(list) > 0 {
		s.Linux.Sysctl = list
	}
	return nil
}

// ipcSysctls are those of an IPC namespace (ipc_namespaces(7)).
var ipcSysctls = []string{
	"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced",
}

// shared changes /dev/shm: its size, or whose it is. /dev/mqueue is the IPC namespace's by itself.
func shared(s *specs.Spec, a *control.CreateArgs) {
	for i := range s.Mounts {
		m := &s.Mounts[i]
		switch {
		case a.IPC == ofHost && m.Destination == "/dev/shm":
			*m = specs.Mount{Destination: m.Destination, Type: "bind", Source: m.Destination, Options: []string{"rbind", "rprivate", "nosuid", "nodev", "noexec"}}
		case m.Destination == "/dev/shm" && a.ShmSize > 0:
			m.Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return strings.HasPrefix(o, "size=") })
			m.Options = append(m.Options, "size="+strconv.FormatInt(a.ShmSize, 10))
		}
	}
}

// devices adds nodes of the host: all of them to a privileged container.
func devices(s *specs.Spec, a *control.CreateArgs) error {
	if a.Privileged {
		if err := apply(s, oci.WithHostDevices); err != nil {
			return fmt.Errorf("--privileged: %w", err)
		}
	}
	for _, d := range a.Devices {
		if !path.IsAbs(d.Host) || !path.IsAbs(d.Inside) || d.Access == "" || strings.Trim(d.Access, "rwm") != "" {
			return invalid("--device %s:%s:%s: want absolute paths, and of the letters r, w and m", d.Host, d.Inside, d.Access)
		}
		n := len(s.Linux.Devices)
		err := apply(s, oci.WithDevices(d.Host, d.Inside, d.Access))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return invalid("--device %s: there is no such device on this machine", d.Host)
		case errors.Is(err, oci.ErrNotADevice), err == nil && len(s.Linux.Devices) == n:
			return invalid("--device %s: it is no device; to show a file use --volume", d.Host)
		case err != nil:
			return fmt.Errorf("--device %s: %w", d.Host, err)
		}
	}
	return nil
}

// joinFlags are the options that the keys of monitor.Config.Joins come from.
var joinFlags = map[string]string{"ipc": "ipc", "pid": "pid", joinedUsers: "userns"}

// joins are the containers whose namespaces, beside the network's, a container shares: kind → ID.
func (s *Service) joins(a *control.CreateArgs) (map[string]string, error) {
	list := map[string]string{}
	for kind, mode := range map[string]string{"ipc": a.IPC, "pid": a.PID, joinedUsers: a.UserNS} {
		name, ok := control.OtherContainer(mode)
		if !ok {
			continue
		}
		id, err := s.find(name)
		if err != nil {
			return nil, fmt.Errorf("--%s %s: %w", joinFlags[kind], mode, err)
		}
		list[kind] = id
	}
	return list, nil
}
