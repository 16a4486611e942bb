package containers

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	ctrcontainers "github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/moby/profiles/seccomp"
	"github.com/moby/sys/capability"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime/cgroups"
)

// Paths that hostFiles makes in a container's directory and binds into it.
const (
	hostsFile    = "hosts"
	hostnameFile = "hostname"
	resolvFile   = "resolv.conf"
)

// spec is the runtime spec of a container: containerd's defaults, made Docker's
// where the two differ, then the image's config, then what the user asked for.
// dir is the container's directory. It is pure: nothing is looked up on the
// host. The user is resolved later, in the container's own passwd.
func spec(a *control.CreateArgs, config *ocispec.Image, dir, cgroupParent string) (*specs.Spec, error) {
	s, err := defaultSpec(a.ID)
	if err != nil {
		return nil, err
	}
	if s.Process.Args, err = command(a, config.Config); err != nil {
		return nil, err
	}
	s.Process.Env = environment(a, config.Config)
	s.Process.Cwd = workdir(a, config.Config)
	s.Process.Terminal = a.TTY
	if a.TTY {
		s.Process.ConsoleSize = &specs.Box{Height: uint(a.Height), Width: uint(a.Width)}
	}
	s.Hostname = a.Hostname
	s.Root.Readonly = a.ReadOnly
	s.Linux.CgroupsPath = path.Join(cmp.Or(a.CgroupParent, cgroupParent), a.ID)
	if err := cgroups.CheckPath(s.Linux.CgroupsPath); err != nil || a.CgroupParent != "" && a.CgroupParent[0] != '/' {
		return nil, invalid("--cgroup-parent %q: want an absolute path of a cgroup, such as /mine", a.CgroupParent)
	}
	s.Annotations = a.Annotations
	for _, set := range []func(*specs.Spec, *control.CreateArgs) error{shareNamespaces, capabilities, resources, ulimits, security, privileged, sysctls} {
		if err := set(s, a); err != nil {
			return nil, err
		}
	}
	return s, mounts(s, a, dir)
}

// defaultSpec is what containerd gives a container, less what Docker does not:
// a tmpfs on /run, a limit of 1024 open files, no_new_privs.
func defaultSpec(id string) (*specs.Spec, error) {
	ctx := namespaces.WithNamespace(context.Background(), "snapfs")
	s, err := oci.GenerateSpec(ctx, nil, &ctrcontainers.Container{ID: id}, oci.WithDefaultUnixDevices)
	if err != nil {
		return nil, err
	}
	s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == "/run" })
	s.Mounts = append(s.Mounts, specs.Mount{
		Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
		Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"},
	})
	isCgroup := func(n specs.LinuxNamespace) bool { return n.Type == specs.CgroupNamespace }
	if !slices.ContainsFunc(s.Linux.Namespaces, isCgroup) { // containerd asks for it on cgroup v2 only
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	s.Process.Rlimits = nil
	s.Process.NoNewPrivileges = false
	s.Linux.MaskedPaths = union(s.Linux.MaskedPaths, dockerMasked)
	return s, nil
}

// dockerMasked are the paths that Docker hides (moby daemon/pkg/oci/defaults.go, v28).
var dockerMasked = []string{
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
	"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
	"/sys/devices/virtual/powercap", "/sys/firmware",
}

func union(a, b []string) []string {
	for _, s := range b {
		if !slices.Contains(a, s) {
			a = append(a, s)
		}
	}
	return a
}

// command combines entrypoint and command as Docker does: an entrypoint given
// by the user discards the image's command.
func command(a *control.CreateArgs, c ocispec.ImageConfig) ([]string, error) {
	entrypoint, args := c.Entrypoint, c.Cmd
	if a.Entrypoint != nil {
		entrypoint, args = a.Entrypoint, nil
		if len(entrypoint) == 1 && entrypoint[0] == "" {
			entrypoint = nil
		}
	}
	if len(a.Args) > 0 {
		args = a.Args
	}
	argv := slices.Concat(entrypoint, args)
	if len(argv) == 0 {
		return nil, invalid("no command specified, and the image has none")
	}
	if argv[0] == "" {
		return nil, invalid("the command is empty")
	}
	return argv, nil
}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment lays the user's variables over the image's over the defaults.
// Image variables without "=" are dropped: they would import the daemon's
// (CVE-2026-57231).
func environment(a *control.CreateArgs, c ocispec.ImageConfig) []string {
	env := []string{defaultPath, "HOSTNAME=" + a.Hostname}
	if a.TTY {
		env = append(env, "TERM=xterm")
	}
	last := map[string]int{} // name → where it is said last: an image may have any number of them
	env = slices.Concat(env, c.Env, a.Env)
	for i, kv := range env {
		if name, _, ok := strings.Cut(kv, "="); ok && name != "" && !strings.ContainsRune(kv, 0) {
			last[name] = i
		}
	}
	kept := env[:0]
	for i, kv := range env {
		if name, _, ok := strings.Cut(kv, "="); ok && name != "" && last[name] == i && !strings.ContainsRune(kv, 0) {
			kept = append(kept, kv)
		}
	}
	return kept
}

func workdir(a *control.CreateArgs, c ocispec.ImageConfig) string {
	dir := c.WorkingDir
	if a.Workdir != "" {
		dir = a.Workdir
	}
	return path.Join("/", dir)
}

func capabilities(s *specs.Spec, a *control.CreateArgs) error {
	set := map[string]bool{}
	for _, c := range s.Process.Capabilities.Bounding {
		set[c] = true
	}
	known := knownCapabilities()
	change := func(names []string, on bool, flag string) error {
		for _, n := range names {
			n = strings.ToUpper(n)
			if n == "ALL" {
				for _, c := range known {
					set[c] = on
				}
				continue
			}
			if !strings.HasPrefix(n, "CAP_") {
				n = "CAP_" + n
			}
			if !slices.Contains(known, n) {
				return invalid("%s %s: unknown capability", flag, strings.TrimPrefix(n, "CAP_"))
			}
			set[n] = on
		}
		return nil
	}
	// ALL first, so that "--cap-drop ALL --cap-add X" and "--cap-add ALL
	// --cap-drop X" both mean what they say.
	isAll := func(n string) bool { return strings.EqualFold(n, "ALL") }
	single := func(names []string) []string { return slices.DeleteFunc(slices.Clone(names), isAll) }
	if slices.ContainsFunc(a.CapAdd, isAll) {
		change([]string{"ALL"}, true, "--cap-add")
	}
	if slices.ContainsFunc(a.CapDrop, isAll) {
		change([]string{"ALL"}, false, "--cap-drop")
	}
	if err := change(single(a.CapDrop), false, "--cap-drop"); err != nil {
		return err
	}
	if err := change(single(a.CapAdd), true, "--cap-add"); err != nil {
		return err
	}
	if a.Privileged {
		change([]string{"ALL"}, true, "--privileged")
	}
	maps.DeleteFunc(set, func(_ string, on bool) bool { return !on })
	list := slices.Sorted(maps.Keys(set))
	s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: list, Permitted: list, Effective: list}
	return nil
}

// knownCapabilities are those that this build has a name for; the runtime
// leaves out what the kernel does not know.
func knownCapabilities() []string {
	var names []string
	for _, c := range capability.ListKnown() {
		names = append(names, "CAP_"+strings.ToUpper(c.String()))
	}
	return names
}

// maxPids is the most that the kernel takes for a limit of processes (PID_MAX_LIMIT, include/linux/threads.h).
const maxPids = 1 << 22

// cpuPeriod is the period of CPU quotas in microseconds: the kernel's default.
const cpuPeriod = 100_000

func resources(s *specs.Spec, a *control.CreateArgs) error {
	r := s.Linux.Resources
	if a.Memory != 0 {
		if a.Memory < 6<<20 {
			return invalid("--memory %d: less than the minimum of 6MiB", a.Memory)
		}
		r.Memory = &specs.LinuxMemory{Limit: &a.Memory, Swap: &[]int64{2 * a.Memory}[0]}
	}
	if a.NanoCPUs != 0 {
		period, quota := uint64(cpuPeriod), a.NanoCPUs/(1e9/cpuPeriod)
		if quota < 1000 {
			return invalid("--cpus: less than the minimum of 0.01")
		}
		r.CPU = &specs.LinuxCPU{Period: &period, Quota: &quota}
	}
	if err := moreResources(s, a); err != nil {
		return err
	}
	if a.PidsLimit < 0 || a.PidsLimit > maxPids {
		return invalid("--pids-limit %d: want 1 to %d, or -1 for no limit", a.PidsLimit, maxPids)
	}
	if a.PidsLimit > 0 {
		r.Pids = &specs.LinuxPids{Limit: &a.PidsLimit}
	}
	return nil
}

func ulimits(s *specs.Spec, a *control.CreateArgs) error {
	limit := func(n int64) uint64 {
		if n == -1 {
			return ^uint64(0)
		}
		return uint64(n)
	}
	for _, u := range a.Ulimits {
		if u.Soft < -1 || u.Hard < -1 || limit(u.Soft) > limit(u.Hard) {
			return invalid("--ulimit %s=%d:%d: the soft limit is above the hard one", u.Name, u.Soft, u.Hard)
		}
		r := specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: limit(u.Soft), Hard: limit(u.Hard)}
		s.Process.Rlimits = slices.DeleteFunc(s.Process.Rlimits, func(o specs.POSIXRlimit) bool { return o.Type == r.Type }) // the last one counts
		s.Process.Rlimits = append(s.Process.Rlimits, r)
	}
	return nil
}

// security applies --security-opt: no-new-privileges[=BOOL] and
// seccomp=unconfined|PROFILE, where the client has put a profile's text in the
// place of its file name.
func security(s *specs.Spec, a *control.CreateArgs) error {
	profile := ""
	for _, opt := range a.SecurityOpt {
		name, value, _ := strings.Cut(opt, "=")
		if !strings.Contains(opt, "=") {
			name, value, _ = strings.Cut(opt, ":")
		}
		switch name {
		case "no-new-privileges":
			on, err := strconv.ParseBool(value)
			if value != "" && err != nil {
				return invalid("--security-opt %s: want true or false", opt)
			}
			s.Process.NoNewPrivileges = on || value == ""
		case "seccomp":
			profile = value
		default:
			return &control.Error{Code: control.CodeUnsupported, Message: fmt.Sprintf("--security-opt %s: only no-new-privileges and seccomp are supported", name)}
		}
	}
	var err error
	switch profile {
	case "unconfined":
		s.Linux.Seccomp = nil
	case "":
		if a.Privileged { // as with Docker
			s.Linux.Seccomp = nil
			break
		}
		s.Linux.Seccomp, err = seccomp.GetDefaultProfile(s)
	case "builtin":
		s.Linux.Seccomp, err = seccomp.GetDefaultProfile(s)
	default:
		s.Linux.Seccomp, err = seccomp.LoadProfile(profile, s)
	}
	if err != nil {
		return invalid("--security-opt seccomp: %v", err)
	}
	return nil
}

// mounts adds the generated host files, binds and tmpfs, parents before children.
func mounts(s *specs.Spec, a *control.CreateArgs, dir string) error {
	var own []specs.Mount
	for _, m := range a.Mounts {
		mount, err := bindOrTmpfs(m)
		if err != nil {
			return err
		}
		own = append(own, mount)
	}
	for _, t := range a.Tmpfs {
		target, options, _ := strings.Cut(t, ":")
		m := control.MountSpec{Type: "tmpfs", Target: target, Options: []string{"noexec"}}
		if options != "" {
			m.Options = append(m.Options, strings.Split(options, ",")...)
		}
		mount, err := bindOrTmpfs(m)
		if err != nil {
			return err
		}
		own = append(own, mount)
	}
	targets := map[string]bool{}
	for _, m := range own {
		if targets[m.Destination] {
			return invalid("%s: duplicate mount point", m.Destination)
		}
		targets[m.Destination] = true
	}
	for _, name := range []string{hostsFile, hostnameFile, resolvFile} {
		if target := "/etc/" + name; !targets[target] {
			own = append(own, specs.Mount{Destination: target, Type: "bind", Source: path.Join(dir, name), Options: []string{"rbind", "rprivate"}})
		}
	}
	shared(s, a)
	s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool { return targets[m.Destination] })
	slices.SortStableFunc(own, func(a, b specs.Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	s.Mounts = append(s.Mounts, own...)
	return nil
}

func bindOrTmpfs(m control.MountSpec) (specs.Mount, error) {
	if !path.IsAbs(m.Target) || path.Clean(m.Target) == "/" {
		return specs.Mount{}, invalid("mount target %q: want an absolute path other than /", m.Target)
	}
	out := specs.Mount{Destination: path.Clean(m.Target), Type: m.Type, Source: m.Source}
	switch m.Type {
	case "bind":
		if !path.IsAbs(m.Source) {
			return out, invalid("mount source %q: want an absolute path", m.Source)
		}
		out.Options = []string{"rbind"}
		if !slices.ContainsFunc(m.Options, isPropagation) {
			out.Options = append(out.Options, "rprivate")
		}
	case "tmpfs":
		out.Source = "tmpfs"
		out.Options = []string{"nosuid", "nodev"}
	default:
		return out, invalid("mount type %q: want bind or tmpfs", m.Type)
	}
	for _, o := range m.Options {
		if strings.ContainsAny(o, "\x00\\") {
			return out, invalid("mount option %q", o)
		}
		out.Options = append(out.Options, o)
	}
	if m.ReadOnly {
		out.Options = append(out.Options, readOnly[m.Type])
	}
	return out, nil
}

// readOnly is the option that makes a mount read-only; of a bind, all that is
// mounted below it, too, as Docker has it since 25.0.
var readOnly = map[string]string{"bind": "rro", "tmpfs": "ro"}

func isPropagation(o string) bool {
	return slices.Contains([]string{"private", "rprivate", "shared", "rshared", "slave", "rslave"}, o)
}

// invalid is an error of the request, not of the daemon.
func invalid(format string, args ...any) error {
	return &control.Error{Code: control.CodeInvalid, Message: fmt.Sprintf(format, args...)}
}
