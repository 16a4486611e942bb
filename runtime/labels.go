package runtime

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// selinuxMount is where a kernel with SELinux enabled has its files.
const selinuxMount = "/sys/fs/selinux"

// apparmorEnabled begins with "Y" where AppArmor is the kernel's.
const apparmorEnabled = "/sys/module/apparmor/parameters/enabled"

// checkLabels refuses labels that this kernel would not enforce.
func (s *start) checkLabels() error {
	if s.proc.apparmor != "" {
		if b, err := os.ReadFile(apparmorEnabled); err != nil || len(b) == 0 || b[0] != 'Y' {
			return errors.New("process.apparmorProfile: this kernel has no AppArmor")
		}
	}
	if s.proc.selinux != "" || s.plan.mountLabel != "" && !s.exec {
		var st unix.Statfs_t
		if err := unix.Statfs(selinuxMount, &st); err != nil || st.Type != unix.SELINUX_MAGIC {
			return errors.New("process.selinuxLabel or linux.mountLabel: SELinux is not enabled on this machine")
		}
	}
	return nil
}

// A label is what to write to a file of /proc before execve.
type label struct {
	file  ref
	value string
	step  string
}

// openLabels opens the files for labels in a procfs of our own (CVE-2019-16884,
// CVE-2025-52881). They are written when the process has its identity; the
// kernel wants writer and opener to have the same memory (591a22c14d3f, Linux 5.13).
func (s *start) openLabels() (list []label) {
	p := s.prog
	open := func(name, value, step string) {
		p.step = step
		f := p.open(s.ownProcfs(), "self/attr/"+name, unix.O_WRONLY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV)
		list = append(list, label{f, value, step})
	}
	if l := s.proc.selinux; l != "" {
		open("exec", l, "SELinux label "+l)
	}
	if a := s.proc.apparmor; a != "" {
		p.step = "AppArmor profile " + a
		// attr/apparmor is there since Linux 5.8; before, and for AppArmor alone, attr/exec.
		const resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV
		f := p.open(s.ownProcfs(), "self/attr/apparmor/exec", unix.O_WRONLY, resolve)
		list = append(list, label{f, "exec " + a, p.step})
	}
	return list
}

func (p *program) writeLabels(list []label) {
	for _, l := range list {
		p.step = l.step
		p.write(l.file, l.value)
	}
}

// labelled adds the mount label to the options of file systems that take it.
func (p *Plan) labelled(m *mount) []string {
	params := m.fsParams()
	switch m.kind {
	case "tmpfs", "devpts", "mqueue":
		if p.mountLabel != "" {
			params = append(params[:len(params):len(params)], fmt.Sprintf("context=%s", p.mountLabel))
		}
	}
	return params
}
