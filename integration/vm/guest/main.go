// Command guest is the first process of the tests' virtual machines: it makes a
// system with the version 2 of cgroups only, does the jobs of /guest.json one
// after the other, and turns the machine off.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/integration/vm"
)

func main() {
	if os.Getpid() != 1 {
		work()
		return
	}
	err := boot()
	if err == nil {
		err = reap()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		if out, oerr := openPort(); oerr == nil {
			say(out, vm.Message{Error: err.Error()})
		}
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// boot makes the file systems and loads the modules.
func boot() error {
	if err := newRoot(); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	for _, m := range []struct {
		kind, at, data string
		flags          uintptr
	}{
		{"proc", "/proc", "", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV},
		{"sysfs", "/sys", "", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV},
		{"devtmpfs", "/dev", "mode=755", unix.MS_NOSUID},
		{"devpts", "/dev/pts", "mode=620,gid=5,ptmxmode=666", unix.MS_NOSUID | unix.MS_NOEXEC},
		{"tmpfs", "/dev/shm", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
		{"mqueue", "/dev/mqueue", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"cgroup2", "/sys/fs/cgroup", "nsdelegate,memory_recursiveprot", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV},
		{"bpf", "/sys/fs/bpf", "", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV},
		{"tmpfs", "/tmp", "mode=1777", unix.MS_NOSUID},
		{"tmpfs", "/var/tmp", "mode=1777,size=64g", unix.MS_NOSUID}, // looks like a disk that is not nearly full
		{"tmpfs", "/run", "mode=755", unix.MS_NOSUID | unix.MS_NODEV},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	for _, l := range [][2]string{{"/proc/self/fd", "/dev/fd"}, {"fd/0", "/dev/stdin"}, {"fd/1", "/dev/stdout"}, {"fd/2", "/dev/stderr"}} {
		if err := os.Symlink(l[0], l[1]); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	if err := loadModules(); err != nil {
		return err
	}
	return loopback()
}

// newRoot puts a mount of the initramfs on top of it: what is below everything
// can be neither moved nor pivoted away from.
func newRoot() error {
	const at = "/.root"
	if err := os.Mkdir(at, 0o755); err != nil {
		return err
	}
	return errors.Join(unix.Mount("/", at, "", unix.MS_BIND, ""), unix.Chdir(at), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), unix.Chdir("/"))
}

func loadModules() error {
	list, err := filepath.Glob("/modules/*.ko")
	if err != nil {
		return err
	}
	slices.Sort(list)
	for _, name := range list {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", name, err)
		}
		f.Close()
	}
	return nil
}

func loopback() error {
	out, err := exec.Command("/bin/ip", "link", "set", "lo", "up").CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip link set lo up: %w: %s", err, out)
	}
	return nil
}

// reap starts the one who works, and takes care of orphans until that one has ended.
func reap() error {
	worker, err := os.StartProcess("/proc/self/exe", []string{"guest", "work"}, &os.ProcAttr{
		Env:   []string{"PATH=/bin:/sbin:/usr/bin:/usr/sbin", "HOME=/root", "TMPDIR=/tmp"},
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		return err
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait: %w", err)
		case pid == worker.Pid && status.ExitStatus() != 0:
			return fmt.Errorf("the jobs' process ended with %#x", int(status))
		case pid == worker.Pid:
			return nil
		}
	}
}

// work does the jobs.
func work() {
	out, err := openPort()
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
	var jobs []vm.Job
	b, err := os.ReadFile("/guest.json")
	if err == nil {
		err = json.Unmarshal(b, &jobs)
	}
	if err != nil {
		say(out, vm.Message{Error: err.Error()})
		os.Exit(1)
	}
	for _, j := range jobs {
		do(out, j)
	}
	say(out, vm.Message{Over: true})
}

func do(out *os.File, j vm.Job) {
	say(out, vm.Message{Begin: j.Name})
	fmt.Fprintln(os.Stderr, "guest: job", j.Name)
	began := time.Now()
	cmd := exec.Command(j.Args[0], j.Args[1:]...)
	cmd.Env = append(os.Environ(), j.Env...)
	cmd.Dir = j.Dir
	cmd.Stdout, cmd.Stderr = out, out
	status := 0
	if err := cmd.Run(); err != nil {
		status = -1
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			status = e.ExitCode()
		}
		if status < 0 {
			fmt.Fprintln(out, err)
		}
	}
	say(out, vm.Message{End: j.Name, Status: status, Ms: time.Since(began).Milliseconds()})
}

// say writes a message of the guest's own.
func say(out *os.File, m vm.Message) {
	b, err := json.Marshal(m)
	if err != nil {
		panic(err) // of strings and numbers
	}
	fmt.Fprintf(out, "%s%s\n", vm.Mark, b)
	_ = unix.IoctlSetInt(int(out.Fd()), unix.TCSBRK, 1) // tcdrain(3): what follows may be the end of the machine
}

// openPort opens the serial port for results, which passes all bytes as they are.
func openPort() (*os.File, error) {
	fd, err := unix.Open("/dev/ttyS1", unix.O_WRONLY|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0) // without waiting for a carrier
	if err != nil {
		return nil, fmt.Errorf("/dev/ttyS1: %w", err)
	}
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	t.Oflag &^= unix.OPOST
	t.Iflag, t.Lflag = 0, 0
	t.Cflag |= unix.CLOCAL
	return os.NewFile(uintptr(fd), "/dev/ttyS1"), errors.Join(unix.IoctlSetTermios(fd, unix.TCSETS, t), unix.SetNonblock(fd, false))
}
