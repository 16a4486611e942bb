// Package vm boots a kernel that is not this machine's, with programs of ours in
// an initramfs, does jobs there and tells what became of them. The machine has
// one processor, no disk and no network, and lives as long as one call of Run.
//
// The kernel comes from a Debian package that scripts/kernel has unpacked, and
// the machine from qemu without KVM (-accel tcg): it works anywhere, and nowhere
// stands still, as /dev/kvm does in some containers. With SNAPFS_KVM=1 it is by KVM,
// 10 to 30 times faster.
package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Machine is what to boot, and what to do there.
type Machine struct {
	Kernel  string   // directory to which the package was unpacked: see Kernel
	Guest   string   // the program of package vm/guest, static
	Modules []string // to load; what they depend on follows by itself
	Files   []File
	Jobs    []Job
	Memory  int // MiB
}

// program is qemu's name; Debian has it in qemu-system-x86.
const program = "qemu-system-x86_64"

// Kernel finds the kernel that scripts/kernel unpacked, and its release. The
// error says what this machine lacks.
func Kernel() (dir, release string, err error) {
	if _, err := exec.LookPath(program); err != nil {
		return "", "", fmt.Errorf("needs %s (Debian: qemu-system-x86)", program)
	}
	cache := os.Getenv("SNAPFS_KERNELS")
	if cache == "" {
		if cache, err = os.UserCacheDir(); err != nil {
			return "", "", err
		}
		cache = filepath.Join(cache, "snapfs-kernels")
	}
	list, err := filepath.Glob(filepath.Join(cache, "linux-image-*"))
	if err != nil || len(list) == 0 {
		return "", "", fmt.Errorf("needs a kernel in %s: run scripts/kernel", cache)
	}
	dir = list[len(list)-1]
	k, err := openKernel(dir)
	if err != nil {
		return "", "", err
	}
	return dir, strings.TrimPrefix(filepath.Base(k.image), "vmlinuz-"), nil
}

// HostFile is a file of the host for the machine.
func HostFile(name, from string, mode fs.FileMode) (File, error) {
	fi, err := os.Stat(from)
	if err != nil {
		return File{}, err
	}
	return File{Name: name, Mode: mode, size: fi.Size(), open: func() (io.ReadCloser, error) { return os.Open(from) }}, nil
}

// ErrEarly says that the machine ended before its jobs.
var ErrEarly = errors.New("the machine has ended early")

// Run boots the machine with its files in dir, and returns when it has turned
// itself off or ctx has ended. What is known of the jobs comes back with an
// error, too, which has the last lines of the console.
func (m *Machine) Run(ctx context.Context, dir string) (_ []Result, err error) {
	k, err := openKernel(m.Kernel)
	if err != nil {
		return nil, err
	}
	initrd, console, port := filepath.Join(dir, "initrd"), filepath.Join(dir, "console"), filepath.Join(dir, "port")
	if err := m.writeInitrd(initrd, k); err != nil {
		return nil, fmt.Errorf("initramfs: %w", err)
	}
	accel := "tcg"
	if os.Getenv("SNAPFS_KVM") == "1" {
		accel = "kvm"
	}
	cmd := exec.CommandContext(ctx, program, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-accel", accel,
		// Five levels of page tables make each walk in software slower.
		"-cpu", "max,la57=off", "-smp", "1", "-m", strconv.Itoa(m.Memory),
		"-kernel", k.image, "-initrd", initrd, "-append", "console=ttyS0 loglevel=5 panic=-1 random.trust_cpu=on mitigations=off nokaslr rdinit=/guest",
		"-serial", "file:"+console, "-serial", "file:"+port)
	var talk bytes.Buffer
	cmd.Stdout, cmd.Stderr = &talk, &talk
	cmd.WaitDelay = 5 * time.Second
	// It ends with this process, also if that is killed: with the thread that has started it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	rerr := cmd.Run()
	said, err := os.ReadFile(port)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	list, over, trouble := parse(said)
	switch {
	case ctx.Err() != nil:
		err = fmt.Errorf("%w: %w", ErrEarly, context.Cause(ctx))
	case rerr != nil:
		err = fmt.Errorf("%s: %w: %s", program, rerr, talk.String())
	case trouble != "":
		err = fmt.Errorf("%w: %s", ErrEarly, trouble)
	case !over:
		err = ErrEarly
	default:
		return list, nil
	}
	return list, fmt.Errorf("%w; the console's last lines:\n%s", err, tail(console, 40))
}

func (m *Machine) writeInitrd(name string, k *kernel) (err error) {
	files := []File{
		{Name: "dev/console", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Major: 5, Minor: 1},
		{Name: "dev/null", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o666, Major: 1, Minor: 3},
	}
	guest, err := HostFile("guest", m.Guest, 0o755)
	if err != nil {
		return err
	}
	jobs, err := json.Marshal(m.Jobs)
	if err != nil {
		return err
	}
	modules, err := k.load(m.Modules)
	if err != nil {
		return err
	}
	files = append(files, guest, File{Name: "guest.json", Mode: 0o644, Data: jobs})
	files = append(append(files, modules...), m.Files...)
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(writeCPIO(f, files), f.Close())
}

// tail returns the last lines of a file.
func tail(name string, n int) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(strings.ToValidUTF8(string(b), "?")), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// Busybox are the files of a system with little more than busybox: its links,
// and the few files of /etc that programs look for.
func Busybox(ctx context.Context) ([]File, error) {
	at, err := exec.LookPath("busybox")
	if err != nil {
		return nil, errors.New("needs busybox, a static one (Debian: busybox-static)")
	}
	list, err := exec.CommandContext(ctx, at, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("busybox --list: %w", err)
	}
	box, err := HostFile("bin/busybox", at, 0o755)
	if err != nil {
		return nil, err
	}
	files := []File{box}
	for name := range strings.FieldsSeq(string(list)) {
		if name != "busybox" {
			files = append(files, File{Name: "bin/" + name, Mode: fs.ModeSymlink | 0o777, Data: []byte("busybox")})
		}
	}
	for name, text := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
		"etc/group":  "root:x:0:\nnogroup:x:65534:\n", "etc/hosts": "127.0.0.1 localhost\n", "etc/resolv.conf": "nameserver 127.0.0.1\n",
	} {
		files = append(files, File{Name: name, Mode: 0o644, Data: []byte(text)})
	}
	return append(files, File{Name: "root", Mode: fs.ModeDir | 0o700}, File{Name: "var/tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777}), nil
}
