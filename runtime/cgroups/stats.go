package cgroups

import (
	"errors"
	"io/fs"
	"time"
)

// Stats is what a group uses and used. What the machine does not count is 0.
type Stats struct {
	Memory struct {
		Usage uint64 // bytes, with Cache
		Cache uint64 // bytes of files that can be dropped (inactive_file)
		Peak  uint64 // bytes
		Limit uint64 // bytes; 0 none
	}
	CPU struct {
		Usage, User, System time.Duration
		Throttled           time.Duration
	}
	Pids struct {
		Current uint64
		Limit   uint64 // 0 none
	}
	OOMKills uint64
}

// Stats reads the group's counters.
func (g *Group) Stats() (*Stats, error) {
	s := &Stats{}
	for _, c := range []struct {
		controller string
		v1, v2     func(*Stats, string) error
	}{
		{"memory", memory1, memory2}, {"cpuacct", cpuacct1, nil}, {"cpu", cpu1, cpu2}, {"pids", pids, pids},
	} {
		d, ok := g.find(c.controller)
		if !ok {
			continue
		}
		fill := c.v1
		if d.v2 {
			fill = c.v2
		}
		if err := fill(s, d.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	n, err := g.OOMKills()
	s.OOMKills = n
	return s, err
}

// OOMKills counts the processes that were killed because a limit of the group was reached.
func (g *Group) OOMKills() (uint64, error) {
	d, ok := g.find("memory")
	if !ok {
		return 0, nil
	}
	file := "memory.oom_control"
	if d.v2 {
		file = "memory.events"
	}
	n, err := field(d.path, file, "oom_kill")
	if errors.Is(err, fs.ErrNotExist) { // not handed down to this group
		return 0, nil
	}
	return n, err
}

// all reads several numbers and stops at the first error.
func all(reads ...func() error) error {
	for _, r := range reads {
		if err := r(); err != nil {
			return err
		}
	}
	return nil
}

func into(to *uint64, at, name string) func() error {
	return func() (err error) { *to, err = number(at, name); return err }
}

func fieldInto(to *uint64, at, name, key string) func() error {
	return func() (err error) { *to, err = field(at, name, key); return err }
}

func memory1(s *Stats, at string) error {
	m := &s.Memory
	return all(into(&m.Usage, at, "memory.usage_in_bytes"), into(&m.Limit, at, "memory.limit_in_bytes"),
		into(&m.Peak, at, "memory.max_usage_in_bytes"), fieldInto(&m.Cache, at, "memory.stat", "total_inactive_file"))
}

func memory2(s *Stats, at string) error {
	m := &s.Memory
	err := all(into(&m.Usage, at, "memory.current"), into(&m.Limit, at, "memory.max"), fieldInto(&m.Cache, at, "memory.stat", "inactive_file"))
	if err != nil {
		return err
	}
	return into(&m.Peak, at, "memory.peak")() // since 5.19
}

func cpuacct1(s *Stats, at string) error {
	var usage, user, system uint64
	err := all(into(&usage, at, "cpuacct.usage"), into(&user, at, "cpuacct.usage_user"), into(&system, at, "cpuacct.usage_sys"))
	s.CPU.Usage, s.CPU.User, s.CPU.System = time.Duration(usage), time.Duration(user), time.Duration(system)
	return err
}

func cpu1(s *Stats, at string) error {
	n, err := field(at, "cpu.stat", "throttled_time")
	s.CPU.Throttled = time.Duration(n)
	return err
}

func cpu2(s *Stats, at string) error {
	var usage, user, system, throttled uint64
	err := all(fieldInto(&usage, at, "cpu.stat", "usage_usec"), fieldInto(&user, at, "cpu.stat", "user_usec"),
		fieldInto(&system, at, "cpu.stat", "system_usec"), fieldInto(&throttled, at, "cpu.stat", "throttled_usec"))
	const us = time.Microsecond
	s.CPU.Usage, s.CPU.User, s.CPU.System, s.CPU.Throttled = time.Duration(usage)*us, time.Duration(user)*us, time.Duration(system)*us, time.Duration(throttled)*us
	return err
}

func pids(s *Stats, at string) error {
	return all(into(&s.Pids.Current, at, "pids.current"), into(&s.Pids.Limit, at, "pids.max"))
}
