// Command inside is what the tests run in containers: one static binary with
// verbs, several of them separated by ";". What a verb finds goes to standard
// output; an error is printed as its errno's name and ends nothing.
package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	args := os.Args[1:]
	for len(args) > 0 {
		n := 0
		for n < len(args) && args[n] != ";" {
			n++
		}
		if err := do(args[0], args[1:n]); err != nil {
			fmt.Println(args[0], name(err))
		}
		args = args[min(n+1, len(args)):]
	}
}

func name(err error) string {
	for e := err; e != nil; {
		if errno, ok := e.(syscall.Errno); ok {
			return unix.ErrnoName(errno)
		}
		u, ok := e.(interface{ Unwrap() error })
		if !ok {
			break
		}
		e = u.Unwrap()
	}
	return err.Error()
}

func number(s string) int {
	n, err := strconv.ParseInt(s, 0, 64)
	if err != nil {
		panic(err)
	}
	return int(n)
}

func do(verb string, a []string) error {
	switch verb {
	case "exit":
		os.Exit(number(a[0]))
	case "echo":
		fmt.Println(strings.Join(a, " "))
	case "args":
		fmt.Printf("%q\n", os.Args)
	case "cat":
		b, err := os.ReadFile(a[0])
		os.Stdout.Write(b)
		return err
	case "stdin":
		_, err := io.Copy(os.Stdout, os.Stdin)
		return err
	case "readline":
		var s string
		_, err := fmt.Scanln(&s)
		fmt.Println("read", s)
		return err
	case "stderr":
		fmt.Fprintln(os.Stderr, strings.Join(a, " "))
	case "grep":
		b, err := os.ReadFile(a[1])
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, a[0]) {
				fmt.Print(line)
			}
		}
		return err
	case "write":
		f, err := os.OpenFile(a[0], os.O_WRONLY|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteString(a[1])
		return err
	case "open":
		f, err := os.Open(a[0])
		if err == nil {
			fmt.Println("open ok")
			f.Close()
		}
		return err
	case "ls":
		list, err := os.ReadDir(a[0])
		for _, e := range list {
			fmt.Print(e.Name(), " ")
		}
		fmt.Println()
		return err
	case "fds":
		list, err := os.ReadDir("/proc/self/fd")
		for _, e := range list {
			target, err := os.Readlink("/proc/self/fd/" + e.Name())
			if err == nil && !strings.HasPrefix(target, "anon_inode:") && target != "/proc/self/fd" && !strings.HasSuffix(target, "/fd") {
				fmt.Print(e.Name(), "=", target, " ")
			}
		}
		fmt.Println()
		return err
	case "save": // standard input and the namespaces' names, to a file
		b, err := io.ReadAll(os.Stdin)
		if err != nil {
			return err
		}
		f, err := os.OpenFile(a[0], os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = fmt.Fprintf(f, "%s %d %s\n", strings.Join(a[1:], " "), os.Getuid(), b)
		return err
	case "spy": // on all processes but this one and its parent, until there is a file /tmp/enough
		fmt.Println("ready")
		spy(a[0])
	case "clock": // CLOCK_BOOTTIME in whole days
		var ts unix.Timespec
		err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
		fmt.Println("days", ts.Sec/86400)
		return err
	case "sched":
		attr, err := unix.SchedGetAttr(0, 0)
		if err != nil {
			return err
		}
		prio, _, e := unix.Syscall(unix.SYS_IOPRIO_GET, 1, 0, 0)
		persona, _, pe := unix.Syscall(unix.SYS_PERSONALITY, 0xffffffff, 0, 0)
		fmt.Println("sched", attr.Policy, attr.Nice, "ioprio", prio>>13, prio&7, e, "personality", persona, pe)
	case "affinity":
		var set unix.CPUSet
		err := unix.SchedGetaffinity(0, &set)
		fmt.Println("cpus", set.Count(), set.IsSet(0))
		return err
	case "chown":
		return os.Chown(a[0], number(a[1]), number(a[2]))
	case "access": // opens for writing
		f, err := os.OpenFile(a[0], os.O_WRONLY, 0)
		if err == nil {
			fmt.Println("access ok")
			f.Close()
		}
		return err
	case "readlink":
		s, err := os.Readlink(a[0])
		fmt.Println(s)
		return err
	case "stat":
		var st unix.Stat_t
		err := unix.Lstat(a[0], &st)
		if err == nil {
			fmt.Printf("%s %o %d:%d %d:%d\n", a[0], st.Mode, st.Uid, st.Gid, unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		return err
	case "ids":
		groups, err := os.Getgroups()
		fmt.Println(os.Getuid(), os.Getgid(), groups)
		return err
	case "cwd":
		s, err := os.Getwd()
		fmt.Println(s)
		return err
	case "env":
		for _, n := range a {
			v, ok := os.LookupEnv(n)
			fmt.Println(n, v, ok)
		}
	case "pid":
		fmt.Println(os.Getpid(), os.Getppid())
	case "hostname":
		var u unix.Utsname
		err := unix.Uname(&u)
		fmt.Println(unix.ByteSliceToString(u.Nodename[:]), unix.ByteSliceToString(u.Domainname[:]))
		return err
	case "mknod":
		return unix.Mknod(a[0], uint32(number(a[1])), int(unix.Mkdev(uint32(number(a[2])), uint32(number(a[3])))))
	case "mkdir":
		return os.Mkdir(a[0], 0o777)
	case "syscall":
		var v [7]uintptr
		for i, s := range a {
			v[i] = uintptr(number(s))
		}
		_, _, e := unix.Syscall6(v[0], v[1], v[2], v[3], v[4], v[5], v[6])
		if e != 0 {
			return e
		}
		fmt.Println("syscall ok")
	case "limit":
		var r unix.Rlimit
		err := unix.Getrlimit(number(a[0]), &r)
		fmt.Println(int64(r.Cur), int64(r.Max))
		return err
	case "blocking":
		for fd := range uintptr(3) {
			flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
			fmt.Print(err == nil && flags&unix.O_NONBLOCK == 0, " ")
		}
		fmt.Println()
	case "umask":
		fmt.Printf("%#o\n", unix.Umask(0))
	case "sleep":
		time.Sleep(time.Hour)
	case "raise":
		signal.Reset()
		unix.Kill(os.Getpid(), unix.Signal(number(a[0])))
		time.Sleep(time.Hour)
	case "trap": // waits for a signal, says which, ends with 40
		c := make(chan os.Signal, 8)
		signal.Notify(c)
		fmt.Println("ready")
		for s := range c {
			if s != unix.SIGURG && s != unix.SIGCHLD {
				fmt.Println("got", unix.SignalName(s.(syscall.Signal)))
				os.Exit(40)
			}
		}
	case "spawn": // starts itself with the rest and does not wait
		cmd := exec.Command("/inside", a...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		return cmd.Start()
	case "orphan": // a child that leaves a child of its own behind, which ends
		cmd := exec.Command("/inside", "spawn", "exit", "0")
		return cmd.Run()
	case "zombies": // counts zombies, after giving them a moment to be reaped
		n := 0
		for range 50 {
			n = zombies()
			if n == 0 {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		fmt.Println("zombies", n)
	case "tty":
		s, err := os.Readlink("/proc/self/fd/0")
		w, werr := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
		if werr != nil {
			return werr
		}
		f, terr := os.OpenFile("/dev/tty", os.O_RDWR, 0)
		if terr != nil {
			return terr
		}
		pgrp, perr := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP)
		fmt.Println(s, w.Row, w.Col, pgrp == unix.Getpgrp(), perr)
		return err
	case "eat": // MiB of memory
		b := make([]byte, number(a[0])<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		fmt.Println("ate", len(b))
	case "fork": // as many children as it can
		n := 0
		for range number(a[0]) {
			cmd := exec.Command("/inside", "sleep")
			if cmd.Start() != nil {
				break
			}
			n++
		}
		fmt.Println("forked", n)
	case "mount":
		return unix.Mount("none", a[0], "tmpfs", 0, "")
	default:
		return fmt.Errorf("verb %s", verb)
	}
	return nil
}

// spy looks into the processes that appear, and says what it gets hold of: a
// program that can be written to, descriptors and files of the host (of whose
// it is told a path), capabilities that the container has not.
func spy(host string) {
	self := os.Getpid()
	bound := caps(self, "CapBnd")
	programs := map[string]*os.File{}
	found := map[string]bool{}
	for {
		if _, err := os.Stat("/tmp/enough"); err == nil {
			break
		}
		list, _ := os.ReadDir("/proc")
		for _, e := range list {
			n, err := strconv.Atoi(e.Name())
			if err != nil || n == self {
				continue
			}
			dir := "/proc/" + e.Name()
			if f, err := os.OpenFile(dir+"/exe", unix.O_PATH, 0); err == nil && programs[base(f)] == nil {
				programs[base(f)] = f
			} else if err == nil {
				f.Close()
			}
			for _, link := range []string{"/root", "/cwd"} {
				if _, err := os.Stat(dir + link + host); err == nil {
					found["the host's "+link] = true
				}
			}
			fds, _ := os.ReadDir(dir + "/fd")
			for _, fd := range fds {
				target, err := os.Readlink(dir + "/fd/" + fd.Name())
				if err == nil && (strings.Contains(target, "snapfs-test") || strings.Contains(target, "/state/")) {
					found["descriptor "+target] = true
				}
			}
			if more := caps(n, "CapEff") &^ bound; more != 0 {
				found[fmt.Sprintf("capabilities %#x", more)] = true
			}
		}
	}
	for n, f := range programs {
		if w, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_WRONLY, 0); err == nil && n != "inside" {
			found["the program "+n] = true
			w.Close()
		}
	}
	for f := range found {
		fmt.Println("found", f)
	}
	fmt.Println("programs", len(programs))
}

// base is the last name of a file's path.
func base(f *os.File) string {
	target, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	return target[strings.LastIndexByte(target, '/')+1:]
}

// caps reads a set of a process's capabilities.
func caps(pid int, set string) uint64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut(string(b), set+":\t")
	text, _, _ := strings.Cut(rest, "\n")
	n, _ := strconv.ParseUint(text, 16, 64)
	return n
}

func zombies() int {
	n := 0
	list, _ := os.ReadDir("/proc")
	for _, e := range list {
		b, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err == nil && strings.Contains(string(b), ") Z ") {
			n++
		}
	}
	return n
}
