package monitor

import (
	"bufio"
	"context"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// idleAfter is how long nobody has asked a monitor for anything before it gives
// back the memory that this has taken. Most containers that end soon have ended by then.
const idleAfter = 4 * time.Second

// stir says that somebody asked for something that takes memory.
func (m *Monitor) stir() {
	select {
	case m.stirred <- struct{}{}:
	default:
	}
}

// slim gives memory back when nothing has come from stirred for idleAfter, once
// until something comes again. A monitor that has started a container, and
// nothing else, is left as it is: its heap has never been collected, and that would
// take half a MiB for itself, more than it gives back. slim returns when ctx has ended.
func slim(ctx context.Context, stirred <-chan struct{}, collect func()) {
	idle := time.NewTimer(idleAfter)
	defer idle.Stop()
	select {
	case <-ctx.Done():
		return
	case <-idle.C:
		noHugePages()
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-stirred:
		}
		for quiet := false; !quiet; {
			idle.Reset(idleAfter)
			select {
			case <-ctx.Done():
				return
			case <-stirred:
			case <-idle.C:
				quiet = true
			}
		}
		collect()
	}
}

// hugePage is the size of one on amd64, and on arm64 with pages of 4 KiB.
const hugePage = 2 << 20

// noHugePages keeps the kernel from backing the few pages of this process with
// huge ones, each as large as all it has (where that is "always" done:
// Documentation/admin-guide/mm/transhuge.rst). prctl(PR_SET_THP_DISABLE) would
// be simpler, but hold for the container's programs, too.
func noHugePages() {
	if b, err := os.ReadFile("/sys/kernel/mm/transparent_hugepage/enabled"); err != nil || !strings.Contains(string(b), "[always]") {
		return
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if from, to, ok := anonymous(lines.Text()); ok && to-from >= hugePage {
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_NOHUGEPAGE) // else it costs memory
		}
	}
}

// anonymous reads a line of /proc/PID/maps (proc_pid_maps(5)); false if it is not one of private memory that can be written.
func anonymous(line string) (from, to uintptr, ok bool) {
	f := strings.Fields(line)
	if len(f) < 5 || f[1] != "rw-p" || f[4] != "0" {
		return 0, 0, false
	}
	a, b, _ := strings.Cut(f[0], "-")
	x, err1 := strconv.ParseUint(a, 16, int(8*unsafe.Sizeof(from)))
	y, err2 := strconv.ParseUint(b, 16, int(8*unsafe.Sizeof(to)))
	return uintptr(x), uintptr(y), err1 == nil && err2 == nil && x < y
}
