package supervisor

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// slim lets go of the pages of this program that only its start has touched:
// initialization goes through much of it, and the supervisor needs little from
// then on. What it needs again is read from the page cache, one fault for 16 pages.
func slim() error {
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return err
	}
	defer f.Close()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	list, err := untouched(f, exe)
	if err != nil {
		return err
	}
	for _, m := range list {
		if _, _, e := unix.Syscall(unix.SYS_MADVISE, m.from, m.to-m.from, unix.MADV_DONTNEED); e != 0 {
			return os.NewSyscallError("madvise", e)
		}
	}
	return nil
}

type span struct{ from, to uintptr }

// untouched finds where a file is mapped as it is: it cannot be written there,
// and this process has no pages of its own in its place, as of what was relocated.
// smaps is /proc/PID/smaps (Documentation/filesystems/proc.rst).
func untouched(smaps io.Reader, file string) (list []span, err error) {
	var at span
	for lines := bufio.NewScanner(smaps); ; {
		if !lines.Scan() {
			return list, lines.Err()
		}
		line := lines.Text()
		var now span
		var perms string
		if n, _ := fmt.Sscanf(line, "%x-%x %4s", &now.from, &now.to, &perms); n == 3 {
			at = span{}
			if strings.HasSuffix(line, " "+file) && !strings.Contains(perms, "w") {
				at = now
			}
			continue
		}
		if own, is := strings.CutPrefix(line, "Anonymous:"); is && strings.TrimSpace(own) == "0 kB" && at.to > at.from {
			list = append(list, at)
		}
	}
}
