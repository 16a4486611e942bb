package supervisor

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSealed: nobody who gets hold of the file that a sealed program was executed from can write to it, when
// nobody executes it any more, either; and it is what is installed at that moment.
func TestSealed(t *testing.T) {
	b := newTestbed(t)
	d := b.start()
	bin := filepath.Join(b.dir, "program")
	install := func(from string) {
		t.Helper()
		text, err := os.ReadFile(from)
		if err == nil {
			err = errors.Join(os.WriteFile(bin+".new", text, 0o755), os.Rename(bin+".new", bin))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	install("/bin/sleep")
	for _, row := range []struct {
		op   string
		want error
	}{{"spawn sealed", unix.EROFS}, {"spawn", nil}, {"spawn sealed", unix.EROFS}} {
		var pid int
		if err := d.call(row.op, &pid, "", bin, "1000"); err != nil {
			t.Fatal(err)
		}
		defer b.kill9(pid)
		if cmd, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err != nil || string(cmd) != bin+"\x001000\x00" {
			t.Errorf("%s: command line %q, %v", row.op, cmd, err)
		}
		exe, err := os.OpenFile(fmt.Sprintf("/proc/%d/exe", pid), unix.O_PATH, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer exe.Close()
		unix.Kill(pid, unix.SIGKILL)
		if err := waitPid(t.Context(), pid, 10*time.Second); err != nil {
			t.Fatal(err)
		}
		w, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", exe.Fd()), os.O_WRONLY, 0)
		if !errors.Is(err, row.want) {
			t.Errorf("%s: opening its file for writing: %v, want %v", row.op, err, row.want)
		}
		w.Close()
	}
	install("/bin/echo")
	out := filepath.Join(b.dir, "out")
	var pid int
	if err := d.call("spawn sealed", &pid, out, bin, "new"); err != nil {
		t.Fatal(err)
	}
	if err := waitPid(t.Context(), pid, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(out); string(text) != "new\n" {
		t.Errorf("the program that was installed last said %q, %v", text, err)
	}
	if err := d.call("spawn sealed", nil, "", "/no/such/program"); err == nil {
		t.Error("nothing was started")
	}
	d.shut()
}

// TestSealedFiles: a sealed program gets its files wherever they and its own are in the table of descriptors.
func TestSealedFiles(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a mount")
	}
	kids := newChildren()
	defer kids.close()
	var s sealed
	defer s.close()
	var out bytes.Buffer
	for i := range 24 {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		files := []*os.File{w, w, w}
		for len(files) < 16 {
			files = append(files, files[len(files)%3])
		}
		fd, err := unix.FcntlInt(w.Fd(), unix.F_DUPFD_CLOEXEC, i) // one that is in everybody's way
		if err != nil {
			t.Fatal(err)
		}
		files[i%16] = os.NewFile(uintptr(fd), "pipe")
		err = s.with("/bin/echo", func(exe *os.File) error {
			_, err := kids.startSealed(exe, []string{"echo", "here"}, nil, "/", files)
			return err
		})
		if err := errors.Join(err, files[i%16].Close(), w.Close()); err != nil {
			t.Error(err)
		}
		out.Reset()
		_, err = out.ReadFrom(r)
		if err := errors.Join(err, r.Close()); err != nil || out.String() != "here\n" {
			t.Errorf("start %d: %q, %v", i, out.String(), err)
		}
	}
}
