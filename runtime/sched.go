package runtime

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// schedAttr is struct sched_attr as of its first version, 48 bytes (sched_setattr(2)).
type schedAttr struct {
	size, policy              uint32
	flags                     uint64
	nice                      int32
	priority                  uint32
	runtime, deadline, period uint64
}

var schedPolicies = map[specs.LinuxSchedulerPolicy]uint32{
	specs.SchedOther: 0, specs.SchedFIFO: 1, specs.SchedRR: 2, specs.SchedBatch: 3, specs.SchedISO: 4, specs.SchedIdle: 5, specs.SchedDeadline: 6,
}

var schedFlags = map[specs.LinuxSchedulerFlag]uint64{
	specs.SchedFlagResetOnFork: 1, specs.SchedFlagReclaim: 2, specs.SchedFlagDLOverrun: 4, specs.SchedFlagKeepPolicy: 8,
	specs.SchedFlagKeepParams: 16, specs.SchedFlagUtilClampMin: 32, specs.SchedFlagUtilClampMax: 64,
}

func planScheduler(s *specs.Scheduler) (*schedAttr, error) {
	if s == nil {
		return nil, nil
	}
	policy, ok := schedPolicies[s.Policy]
	if !ok {
		return nil, fmt.Errorf("policy %q is none", s.Policy)
	}
	a := &schedAttr{size: 48, policy: policy, nice: s.Nice, priority: uint32(s.Priority), runtime: s.Runtime, deadline: s.Deadline, period: s.Period}
	for _, f := range s.Flags {
		bit, ok := schedFlags[f]
		if !ok {
			return nil, fmt.Errorf("flag %q is none", f)
		}
		a.flags |= bit
	}
	realtime := policy == 1 || policy == 2
	switch {
	case s.Nice < -20 || s.Nice > 19:
		return nil, fmt.Errorf("nice %d is not of -20 to 19", s.Nice)
	case s.Priority < 0 || s.Priority > 99 || s.Priority != 0 && !realtime:
		return nil, fmt.Errorf("priority %d: only SCHED_FIFO and SCHED_RR have one, up to 99", s.Priority)
	case policy != 6 && (s.Runtime|s.Deadline|s.Period) != 0:
		return nil, errors.New("runtime, deadline and period are of SCHED_DEADLINE")
	}
	return a, nil
}

// planIOPriority returns what ioprio_set(2) takes; -1 for none.
func planIOPriority(s *specs.LinuxIOPriority) (int, error) {
	if s == nil {
		return -1, nil
	}
	class, ok := map[specs.IOPriorityClass]int{specs.IOPRIO_CLASS_RT: 1, specs.IOPRIO_CLASS_BE: 2, specs.IOPRIO_CLASS_IDLE: 3}[s.Class]
	if !ok {
		return -1, fmt.Errorf("class %q is none", s.Class)
	}
	if s.Priority < 0 || s.Priority > 7 {
		return -1, fmt.Errorf("priority %d is not of 0 to 7", s.Priority)
	}
	return class<<13 | s.Priority, nil
}

// planPersonality returns what personality(2) takes; -1 for none.
func planPersonality(s *specs.LinuxPersonality) (int, error) {
	if s == nil {
		return -1, nil
	}
	if len(s.Flags) > 0 {
		return -1, fmt.Errorf("flags: %w", ErrUnsupported)
	}
	switch s.Domain {
	case specs.PerLinux:
		return 0, nil
	case specs.PerLinux32:
		return 8, nil
	}
	return -1, fmt.Errorf("domain %q is none", s.Domain)
}

// maxCPUs is what a set of CPUs may name; NR_CPUS of the largest kernels is 8192.
const maxCPUs = 8192

// planCPUs reads a list as of cpuset(7), "0-3,7", into the mask of sched_setaffinity(2).
func planCPUs(list string) ([]byte, error) {
	if list == "" {
		return nil, nil
	}
	mask := make([]byte, 0, 8)
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(part, "-")
		a, err := strconv.ParseUint(from, 10, 32)
		b := a
		if err == nil && isRange {
			b, err = strconv.ParseUint(to, 10, 32)
		}
		if err != nil || a > b || b >= maxCPUs {
			return nil, fmt.Errorf("%q is no list of CPUs", list)
		}
		for len(mask)*8 <= int(b) {
			mask = append(mask, make([]byte, 8)...)
		}
		for ; a <= b; a++ {
			mask[a/8] |= 1 << (a % 8)
		}
	}
	return mask, nil
}

// schedule sets all that is about when the process runs.
func (p *program) schedule(pr *process) {
	if pr.sched != nil {
		p.step = "scheduler"
		p.add(unix.SYS_SCHED_SETATTR, 0, value(p, *pr.sched), 0)
	}
	if pr.ioprio >= 0 {
		p.step = "ioPriority"
		p.add(unix.SYS_IOPRIO_SET, 1, 0, uintptr(pr.ioprio)) // IOPRIO_WHO_PROCESS
	}
	if pr.persona >= 0 {
		p.step = "personality"
		p.add(unix.SYS_PERSONALITY, uintptr(pr.persona))
	}
	p.affinity("final CPU affinity", pr.finalCPUs)
}

func (p *program) affinity(step string, mask []byte) {
	if len(mask) == 0 {
		return
	}
	p.step = step
	b := p.bytes(len(mask))
	copy(b, mask)
	p.add(unix.SYS_SCHED_SETAFFINITY, 0, uintptr(len(mask)), addr(b))
}

// everything is all capabilities there are.
func everything() capabilities {
	all := uint64(1)<<(strings.Count(capNames, " ")+1) - 1
	return capabilities{bounding: all, effective: all, permitted: all}
}

var _ [48]byte = [unsafe.Sizeof(schedAttr{})]byte{}
