package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	goruntime "runtime"
	"time"

	"golang.org/x/sys/unix"
)

// An op is one thing that is done to each system.
type op struct {
	name string
	cold bool
	do   func(s *system, i *treeInfo) error
}

var ops = []op{
	{"walk cold", true, find},
	{"read small cold", true, func(s *system, i *treeInfo) error { return s.each(i.small, s.read) }},
	{"read large cold", true, func(s *system, i *treeInfo) error { return s.each(i.large, s.read) }},
	{"walk", false, find},
	{"walk+stat", false, list},
	{"stat all", false, func(s *system, i *treeInfo) error { return s.each(i.names, s.stat) }},
	{"open+close all", false, func(s *system, i *treeInfo) error { return s.each(i.files, s.openClose) }},
	{"read small", false, func(s *system, i *treeInfo) error { return s.each(i.small, s.read) }},
	{"read large", false, func(s *system, i *treeInfo) error { return s.each(i.large, s.read) }},
}

// measure does every operation on every system in each round.
func (s *stand) measure(ctx context.Context, rounds int) ([]row, error) {
	goruntime.LockOSThread() // whose CPU time is measured
	defer goruntime.UnlockOSThread()
	times := map[[2]string][]spent{}
	for round := range rounds {
		step("round %d of %d", round+1, rounds)
		primed := false
		for n, o := range ops {
			if !o.cold && !primed {
				primed = true
				if err := s.prime(); err != nil {
					return nil, err
				}
			}
			// Not only rotated: what one leaves behind (FUSE's small pages) must not
			// always meet the same other one.
			for _, i := range rand.New(rand.NewPCG(uint64(round), uint64(n))).Perm(len(s.systems)) {
				if err := ctx.Err(); err != nil {
					return nil, err
				}
				sys := s.systems[i]
				d, err := s.time(o, sys)
				if err != nil {
					return nil, fmt.Errorf("%s: %s: %w", sys.name, o.name, err)
				}
				key := [2]string{o.name, sys.name}
				times[key] = append(times[key], d)
			}
		}
	}
	var rows []row
	for _, o := range ops {
		for _, sys := range s.systems {
			rows = append(rows, newRow(o.name, sys.name, times[[2]string{o.name, sys.name}], times[[2]string{o.name, s.systems[0].name}]))
		}
	}
	return rows, nil
}

// spent is what something took: time, and of that, CPU time of the thread.
type spent struct{ wall, cpu time.Duration }

func (s *stand) time(o op, sys *system) (t spent, err error) {
	if o.cold {
		if err := dropCaches(); err != nil {
			return t, err
		}
	}
	cpu, err := threadCPU()
	if err != nil {
		return t, err
	}
	begin := time.Now()
	if err := o.do(sys, &s.info); err != nil {
		return t, err
	}
	t.wall = time.Since(begin)
	end, err := threadCPU()
	t.cpu = end - cpu
	return t, err
}

func threadCPU() (time.Duration, error) {
	var ts unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts)
	return time.Duration(ts.Nano()), err
}

// prime does every warm operation once.
func (s *stand) prime() error {
	for _, sys := range s.systems {
		for _, o := range ops {
			if o.cold {
				continue
			}
			if err := o.do(sys, &s.info); err != nil {
				return fmt.Errorf("%s: %s: %w", sys.name, o.name, err)
			}
		}
	}
	return nil
}

func dropCaches() error { return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0) }

func (s *system) each(names []string, do func(name string) error) error {
	for _, name := range names {
		if err := do(name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func (s *system) stat(name string) error {
	var st unix.Stat_t
	return unix.Fstatat(s.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
}

func (s *system) open(name string) (int, error) {
	return unix.Openat(s.fd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

func (s *system) openClose(name string) error {
	fd, err := s.open(name)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

var readBuffer = make([]byte, 1<<20)

func (s *system) read(name string) error {
	fd, err := s.open(name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	total := 0
	for {
		n, err := unix.Read(fd, readBuffer)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		total += n
	}
	if total == 0 {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// find reads every directory, and finds those by their type, as find(1) does.
func find(s *system, i *treeInfo) error { return walkAll(s, i, false) }

// list also asks for the attributes of every name, as ls -lR does.
func list(s *system, i *treeInfo) error { return walkAll(s, i, true) }

func walkAll(s *system, i *treeInfo, stat bool) error {
	n, err := walk(s.fd, ".", stat)
	if err == nil && n != i.Names-1 {
		err = fmt.Errorf("walk saw %d names of %d", n, i.Names-1)
	}
	return err
}

func walk(at int, name string, stat bool) (total int, err error) {
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	var buf [32 << 10]byte
	for {
		n, err := unix.Getdents(fd, buf[:])
		if n <= 0 || err != nil {
			return total, err
		}
		// struct linux_dirent64: ino, off uint64, reclen uint16, type uint8, name (getdents(2))
		for p := buf[:n]; len(p) > 0; p = p[binary.NativeEndian.Uint16(p[16:]):] {
			name := unix.ByteSliceToString(p[19:binary.NativeEndian.Uint16(p[16:])])
			if name == "." || name == ".." {
				continue
			}
			total++
			if stat {
				var st unix.Stat_t
				if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
					return total, err
				}
			}
			if p[18] == unix.DT_DIR {
				below, err := walk(fd, name, stat)
				total += below
				if err != nil {
					return total, err
				}
			}
		}
	}
}
