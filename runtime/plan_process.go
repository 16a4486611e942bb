package runtime

import (
	"errors"
	"fmt"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A process is what to execute and with which rights.
type process struct {
	args, env  []string
	cwd        string
	user       string // name[:group] to look up; "" is the numbers below
	uid, gid   uint32
	groups     []uint32
	umask      uint32
	caps       capabilities
	rlimits    []rlimit
	oomScore   *int
	noNewPrivs bool
	terminal   bool
	rows, cols uint16

	file                 string // to execute instead of what args[0] finds; "" if that is it
	sched                *schedAttr
	ioprio, persona      int // -1 none
	firstCPUs, finalCPUs []byte
	apparmor, selinux    string
}

type rlimit struct {
	name       string
	resource   int
	soft, hard uint64
}

// capabilities are the five sets of a process, as bits.
type capabilities struct {
	bounding, effective, permitted, inheritable, ambient uint64
}

// planProcess reads spec.Process, or the process of an Exec.
func planProcess(s *specs.Process, warnings *[]string) (process, error) {
	p := process{
		args: s.Args, cwd: s.Cwd, user: s.User.Username, uid: s.User.UID, gid: s.User.GID, groups: s.User.AdditionalGids,
		umask: 0o022, oomScore: s.OOMScoreAdj, noNewPrivs: s.NoNewPrivileges, terminal: s.Terminal, persona: -1,
		apparmor: s.ApparmorProfile, selinux: s.SelinuxLabel,
	}
	for name, label := range map[string]string{"apparmorProfile": p.apparmor, "selinuxLabel": p.selinux} {
		if strings.ContainsAny(label, "\x00\n") || len(label) > 4000 {
			return p, fmt.Errorf("process.%s: %q is none", name, label)
		}
	}
	if len(s.Args) == 0 || s.Args[0] == "" {
		return p, errors.New("process.args: nothing to execute")
	}
	for _, a := range s.Args {
		if strings.ContainsRune(a, 0) {
			return p, fmt.Errorf("process.args: %q has a NUL byte", a)
		}
	}
	if p.uid > 1<<31-1 || p.gid > 1<<31-1 {
		return p, fmt.Errorf("process.user: %d:%d is out of range", p.uid, p.gid)
	}
	for _, g := range p.groups {
		if g > 1<<31-1 {
			return p, fmt.Errorf("process.user.additionalGids: %d is out of range", g)
		}
	}
	if s.User.Umask != nil {
		p.umask = *s.User.Umask & 0o777
	}
	if s.ConsoleSize != nil {
		p.rows, p.cols = uint16(min(s.ConsoleSize.Height, 65535)), uint16(min(s.ConsoleSize.Width, 65535))
	}
	if p.oomScore != nil && (*p.oomScore < -1000 || *p.oomScore > 1000) {
		return p, fmt.Errorf("process.oomScoreAdj: %d is not of -1000 to 1000", *p.oomScore)
	}
	return p, errors.Join(p.planSched(s), p.planCwd(), p.planEnv(s.Env), p.planCaps(s.Capabilities, warnings), p.planRlimits(s.Rlimits))
}

func (p *process) planSched(s *specs.Process) (err error) {
	if p.sched, err = planScheduler(s.Scheduler); err != nil {
		return fmt.Errorf("process.scheduler: %w", err)
	}
	if p.ioprio, err = planIOPriority(s.IOPriority); err != nil {
		return fmt.Errorf("process.ioPriority: %w", err)
	}
	if a := s.ExecCPUAffinity; a != nil {
		p.firstCPUs, err = planCPUs(a.Initial)
		if err == nil {
			p.finalCPUs, err = planCPUs(a.Final)
		}
	}
	return within("process.execCPUAffinity", err)
}

func (p *process) planCwd() error {
	if p.cwd == "" {
		p.cwd = "/"
	}
	clean, err := cleanPath(p.cwd)
	if err != nil {
		return fmt.Errorf("process.cwd: %w", err)
	}
	p.cwd = clean
	return nil
}

// planEnv drops what is no NAME=VALUE: a bare name must not take the value
// that this process happens to have (CVE-2026-57231).
func (p *process) planEnv(env []string) error {
	for _, e := range env {
		if strings.ContainsRune(e, 0) {
			return fmt.Errorf("process.env: %q has a NUL byte", e)
		}
		if i := strings.IndexByte(e, '='); i > 0 {
			p.env = append(p.env, e)
		}
	}
	return nil
}

// getenv returns the last value of a name, as a shell sees it.
func (p *process) getenv(name string) (string, bool) {
	for i := len(p.env) - 1; i >= 0; i-- {
		if v, ok := strings.CutPrefix(p.env[i], name+"="); ok {
			return v, true
		}
	}
	return "", false
}

// name is what is executed, for an error.
func (p *process) name() string {
	if p.file != "" || len(p.args) == 0 {
		return p.file
	}
	return p.args[0]
}

// candidates are the paths to try for args[0], as execvp(3) does. A relative
// entry of PATH counts from the working directory; an empty one is not searched.
func (p *process) candidates() []string {
	if p.file != "" {
		return []string{p.file}
	}
	name := p.args[0]
	if strings.ContainsRune(name, '/') {
		return []string{name}
	}
	search, ok := p.getenv("PATH")
	if !ok {
		search = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	}
	var list []string
	for dir := range strings.SplitSeq(search, ":") {
		if dir != "" {
			list = append(list, path.Join(dir, name))
		}
	}
	return list
}

func (p *process) planCaps(c *specs.LinuxCapabilities, warnings *[]string) error {
	if c == nil {
		return nil // none at all
	}
	for _, set := range []struct {
		name  string
		names []string
		to    *uint64
	}{
		{"bounding", c.Bounding, &p.caps.bounding}, {"effective", c.Effective, &p.caps.effective},
		{"permitted", c.Permitted, &p.caps.permitted}, {"inheritable", c.Inheritable, &p.caps.inheritable},
		{"ambient", c.Ambient, &p.caps.ambient},
	} {
		for _, name := range set.names {
			bit, ok := capability(name)
			if !ok {
				*warnings = append(*warnings, fmt.Sprintf("process.capabilities.%s: %s is unknown and ignored", set.name, name))
				continue
			}
			*set.to |= 1 << bit
		}
	}
	switch {
	case p.caps.effective&^p.caps.permitted != 0:
		return errors.New("process.capabilities: effective has more than permitted")
	case p.caps.ambient&^(p.caps.permitted&p.caps.inheritable) != 0:
		return errors.New("process.capabilities: ambient has more than permitted and inheritable")
	}
	return nil
}

// capNames are the capabilities of Linux 6.18 (include/uapi/linux/capability.h), by number.
const capNames = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE " +
	"NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE " +
	"SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL " +
	"SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"

// capability returns the number of a capability, "CAP_CHOWN" or "chown".
func capability(name string) (int, bool) {
	name = strings.TrimPrefix(strings.ToUpper(name), "CAP_")
	i := 0
	for n := range strings.SplitSeq(capNames, " ") {
		if n == name {
			return i, true
		}
		i++
	}
	return 0, false
}

var rlimitNames = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_DATA": unix.RLIMIT_DATA,
	"RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE,
	"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
	"RLIMIT_RTTIME": unix.RLIMIT_RTTIME, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

func (p *process) planRlimits(list []specs.POSIXRlimit) error {
	seen := map[string]bool{}
	for _, r := range list {
		id, ok := rlimitNames[r.Type]
		switch {
		case !ok:
			return fmt.Errorf("process.rlimits: %q is none", r.Type)
		case seen[r.Type]:
			return fmt.Errorf("process.rlimits: %s is there twice", r.Type)
		case r.Soft > r.Hard:
			return fmt.Errorf("process.rlimits: %s: soft %d is above hard %d", r.Type, r.Soft, r.Hard)
		}
		seen[r.Type] = true
		p.rlimits = append(p.rlimits, rlimit{r.Type, id, r.Soft, r.Hard})
	}
	return nil
}
