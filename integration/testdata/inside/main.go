// Command inside is what the containers of the tests run.
package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	switch os.Args[1] {
	case "sums": // of every file below a directory, and then a last line, if one is given
		err := filepath.WalkDir(os.Args[2], func(p string, d fs.DirEntry, err error) error {
			if p == "/proc" || p == "/sys" || p == "/dev" {
				return fs.SkipDir
			}
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			_, err = fmt.Printf("%x %s\n", sha256.Sum256(b), p)
			return err
		})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		for _, last := range os.Args[3:] {
			fmt.Println(last)
		}
	case "exit":
		code, err := strconv.Atoi(os.Args[2])
		if err != nil {
			panic(err)
		}
		os.Exit(code)
	case "make": // a file
		if err := os.WriteFile(os.Args[2], nil, 0o600); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "id": // whose process this is
		groups, err := os.Getgroups()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		slices.Sort(groups)
		fmt.Println(os.Getuid(), os.Getgid(), groups)
	case "owner": // of a file
		var st unix.Stat_t
		if err := unix.Stat(os.Args[2], &st); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(st.Uid, st.Gid)
	case "change-owner": // to another, and back
		for _, id := range []int{77, 5} {
			if err := os.Chown(os.Args[2], id, id+1); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
	case "chmod": // of a file, by an octal number, set-user-ID and all
		mode, err := strconv.ParseUint(os.Args[2], 8, 12)
		check(err)
		check(unix.Chmod(os.Args[3], uint32(mode)))
	case "mknod": // the host's first memory device
		check(unix.Mknod(os.Args[2], unix.S_IFCHR|0o666, int(unix.Mkdev(1, 1))))
	case "users": // that the user namespace has
		b, err := os.ReadFile("/proc/self/uid_map")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(strings.Join(strings.Fields(string(b)), " "))
	case "change": // what can be, below a directory, with nothing left to chance
		if err := change(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "serve": // tells whoever connects who they are: NAME tcp:PORT udp:PORT …
		serve(os.Args[2], os.Args[3:])
	case "ask": // a server: tcp ADDRESS:PORT
		text, err := ask(os.Args[2], os.Args[3])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(text)
	case "link": // tells where one leads
		name, err := os.Readlink(os.Args[2])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(name)
	case "cat":
		for _, name := range os.Args[2:] {
			b, err := os.ReadFile(name)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Stdout.Write(b)
		}
	case "take": // hold of a program of the host's: FILE
		if err := take(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "eat": // so many MiB of memory
		n, err := strconv.Atoi(os.Args[2])
		if err != nil {
			panic(err)
		}
		b := make([]byte, n<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		fmt.Println("ate", len(b))
	case "forks": // starts so many processes, as far as it can, and counts them
		n, err := strconv.Atoi(os.Args[2])
		if err != nil {
			panic(err)
		}
		started := 0
		for range n {
			if exec.Command("/proc/self/exe", "wait").Start() != nil {
				break
			}
			started++
		}
		fmt.Println(started)
	case "wait": // until it is killed
		// The kernel keeps SIGTERM from an init that does not ask for it, and Go's runtime then exits with 2.
		term := make(chan os.Signal, 1)
		signal.Notify(term, unix.SIGTERM)
		fmt.Println("waiting")
		<-term
		os.Exit(128 + int(unix.SIGTERM))
	}
}

// change does to the files of the image "changes" what a container can: new ones,
// other bytes, modes, owners and names, links, and directories that are emptied.
func change(top string) error {
	in := func(name string) string { return filepath.Join(top, name) }
	extend := func(name string) error {
		f, err := os.OpenFile(in(name), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString("more")
		return errors.Join(err, f.Close())
	}
	steps := []func() error{
		func() error { return os.MkdirAll(in("new/dir"), 0o750) },
		func() error { return os.WriteFile(in("new/dir/file"), make([]byte, 70_000), 0o640) },
		func() error { return os.Symlink("dir/file", in("new/link")) },
		func() error { return os.Chmod(in("keep/a"), 0o600) }, // no byte of it changes
		func() error { return os.Chown(in("suid"), 7, 8) },
		func() error { return os.Link(in("owned"), in("owned-too")) },
		func() error { return extend("gone/y") },
		func() error { return os.Rename(in("dir-then-file"), in("renamed")) },
		func() error { return os.Remove(in("fifo")) },
		func() error { return os.RemoveAll(in("opaque")) },
		func() error { return os.Mkdir(in("opaque"), 0o755) },
		func() error { return os.WriteFile(in("opaque/again"), []byte("again"), 0o644) },
		func() error { return os.Truncate(in("capable"), 3) },
	}
	for i, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	when := time.Unix(1_700_000_100, 0)
	for _, name := range []string{"new/dir/file", "new/dir", "new", "keep/a", "keep", "suid", "owned", "gone/y", "gone", "renamed", "opaque/again", "opaque", "capable", "."} {
		if err := os.Chtimes(in(name), when, when); err != nil {
			return err
		}
	}
	ts := []unix.Timespec{{Sec: when.Unix()}, {Sec: when.Unix()}}
	return unix.UtimesNanoAt(unix.AT_FDCWD, in("new/link"), ts, unix.AT_SYMLINK_NOFOLLOW)
}
