package supervisor

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// TestUserNamespace: the worker gets a user namespace, and a network that belongs to it and to no other.
func TestUserNamespace(t *testing.T) {
	b := newTestbed(t)
	d := b.launch()
	d.worker(0)
	ask := func(args ...string) []*os.File {
		t.Helper()
		files, err := control.Call(t.Context(), Socket(d.run), "users", args, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			t.Cleanup(func() { f.Close() })
		}
		return files
	}
	inode := func(f *os.File) string {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(st.Dev, st.Ino)
	}
	const users = "0:300000:65536"
	alone, both := ask(users), ask(users, "network")
	if len(alone) != 1 || len(both) != 2 {
		t.Fatalf("%d and %d descriptors, want 1 and 2", len(alone), len(both))
	}
	if inode(alone[0]) == inode(both[0]) {
		t.Error("one namespace was given twice")
	}
	for i, want := range []int{unix.CLONE_NEWUSER, unix.CLONE_NEWNET} {
		if kind, err := unix.IoctlRetInt(int(both[i].Fd()), unix.NS_GET_NSTYPE); err != nil || kind != want {
			t.Errorf("descriptor %d is of kind %#x, %v, want %#x", i, kind, err, want)
		}
	}
	fd, err := unix.IoctlRetInt(int(both[1].Fd()), unix.NS_GET_USERNS)
	if err != nil {
		t.Fatal(err)
	}
	owner := os.NewFile(uintptr(fd), "owner")
	defer owner.Close()
	if inode(owner) != inode(both[0]) {
		t.Error("the network does not belong to the user namespace")
	}
	if err := d.call("users", nil, "1:300000:1"); !isCode(err, control.CodeInvalid) && err == nil {
		t.Errorf("without root: %v", err)
	}
	d.shut()
}
