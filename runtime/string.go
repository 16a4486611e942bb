package runtime

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"unicode"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// String lists what Start will do, one step per line, in its order.
func (p *Plan) String() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("cgroup %s%s", p.cgroup, resources(p.resources))
	if p.scope != nil {
		line("unit %s in %s, made by systemd", p.scope.unit, p.scope.slice)
	}
	line("namespaces%s", nsNames(p.newNS))
	for _, j := range p.join {
		line("join%s %s", nsNames(j.kind), j.path)
	}
	for _, d := range p.netDevices {
		line("network device %s as %s", d.host, d.name)
	}
	root := p.rootPath
	if root == "" {
		root = "given by descriptor"
	}
	line("root %s", root)
	for i := range p.mounts {
		line("%s%s", &p.mounts[i], p.mounts[i].details())
	}
	for _, d := range p.devices {
		line("device %s %s%o %d:%d", d.path, deviceType(d.mode), d.mode&0o7777, d.major, d.minor)
	}
	for _, s := range p.sysctls {
		line("sysctl %s = %s", s.key, s.value)
	}
	for _, m := range p.masked {
		line("mask %s", m)
	}
	for _, m := range p.readonly {
		line("make %s read-only", m)
	}
	line("pivot_root")
	if p.rootReadonly {
		line("make / read-only")
	}
	if p.hostname != "" {
		line("hostname %s", p.hostname)
	}
	if p.domainname != "" {
		line("domainname %s", p.domainname)
	}
	p.proc.describe(line)
	if p.seccomp != nil {
		line("seccomp filter, default %s, %d rules", p.seccomp.DefaultAction, len(p.seccomp.Syscalls))
	}
	if p.init {
		line("exec init, which executes the next")
	}
	line("exec %q", p.proc.args)
	return b.String()
}

func (pr *process) describe(line func(string, ...any)) {
	if pr.terminal {
		line("terminal %dx%d", pr.cols, pr.rows)
	}
	if pr.oomScore != nil {
		line("oom_score_adj %d", *pr.oomScore)
	}
	for _, r := range pr.rlimits {
		line("%s %d:%d", r.name, int64(r.soft), int64(r.hard))
	}
	line("chdir %s", plain(pr.cwd))
	if pr.user != "" {
		line("user %q, umask %#o", pr.user, pr.umask)
	} else {
		line("user %d:%d %v, umask %#o", pr.uid, pr.gid, pr.groups, pr.umask)
	}
	for _, c := range []struct {
		name string
		set  uint64
	}{{"bounding", pr.caps.bounding}, {"permitted", pr.caps.permitted}, {"effective", pr.caps.effective}, {"inheritable", pr.caps.inheritable}, {"ambient", pr.caps.ambient}} {
		line("capabilities %s%s", c.name, capSet(c.set))
	}
	if pr.noNewPrivs {
		line("no_new_privs")
	}
}

// plain quotes what would make more than one line, or no text, of a line.
func plain(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

func nsNames(flags uintptr) string {
	var s string
	for _, n := range []specs.LinuxNamespaceType{specs.MountNamespace, specs.PIDNamespace, specs.UTSNamespace, specs.IPCNamespace, specs.NetworkNamespace, specs.CgroupNamespace, specs.UserNamespace, specs.TimeNamespace} {
		if flags&namespaces[n] != 0 {
			s += " " + string(n)
		}
	}
	return s
}

func capSet(set uint64) string {
	if set == 0 {
		return " none"
	}
	names := strings.Fields(capNames)
	var s string
	for ; set != 0; set &= set - 1 {
		s += " " + names[bits.TrailingZeros64(set)]
	}
	return s
}

func deviceType(mode uint32) string {
	return map[uint32]string{unix.S_IFCHR: "c", unix.S_IFBLK: "b", unix.S_IFIFO: "p"}[mode&unix.S_IFMT]
}

// details are the options of a mount as they were understood.
func (m *mount) details() string {
	var list []string
	for _, name := range sortedKeys(mountAttrs) {
		a := mountAttrs[name]
		if a.set&^uint64(unix.MOUNT_ATTR__ATIME) == 0 {
			continue
		}
		if m.set&a.set != 0 {
			list = append(list, name)
		}
		if m.setRec&a.set != 0 {
			list = append(list, "r"+name)
		}
	}
	for _, name := range sortedKeys(propagations) {
		if m.propagation == propagations[name] {
			if m.propagationRec {
				name = "r" + name
			}
			list = append(list, name)
		}
	}
	if m.recursive {
		list = append(list, "rbind")
	}
	if m.copies {
		list = append(list, "tmpcopyup")
	}
	list = append(list, m.params...)
	if len(list) == 0 {
		return ""
	}
	return " (" + strings.Join(list, ",") + ")"
}

// resources names the limits that are most asked for.
func resources(r *specs.LinuxResources) string {
	if r == nil {
		return ""
	}
	var s string
	if r.Memory != nil && r.Memory.Limit != nil {
		s += fmt.Sprintf(", memory %d bytes", *r.Memory.Limit)
	}
	if r.CPU != nil && r.CPU.Quota != nil && r.CPU.Period != nil {
		s += fmt.Sprintf(", cpu %d us of %d us", *r.CPU.Quota, *r.CPU.Period)
	}
	if r.Pids != nil && r.Pids.Limit != nil {
		s += fmt.Sprintf(", %d processes", *r.Pids.Limit)
	}
	return s
}
