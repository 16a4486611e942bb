package cgroups

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// A setting is one value for one file of a controller.
type setting struct {
	controller, file, value string
	optional                bool // a kernel may not have it
}

// CheckResources refuses resources that cannot be meant.
func CheckResources(r *specs.LinuxResources) error {
	if r == nil {
		return nil
	}
	for name := range r.Unified {
		if name == "" || strings.ContainsAny(name, "/\x00") || !strings.Contains(name, ".") || strings.HasPrefix(name, "cgroup.") {
			return fmt.Errorf("unified: %q is not the name of a limit", name)
		}
	}
	if m := r.Memory; m != nil && m.Limit != nil && m.Swap != nil && *m.Swap > 0 && *m.Limit > *m.Swap {
		return fmt.Errorf("memory: the limit %d is above memory and swap together, %d", *m.Limit, *m.Swap)
	}
	if c := r.CPU; c != nil && c.Quota != nil && *c.Quota > 0 && *c.Quota < 1000 {
		return fmt.Errorf("cpu: a quota of %d us is below the kernel's least, 1000", *c.Quota)
	}
	for _, h := range r.HugepageLimits {
		if strings.ContainsAny(h.Pagesize, "/\x00") || h.Pagesize == "" {
			return fmt.Errorf("hugepageLimits: page size %q", h.Pagesize)
		}
	}
	_, err := deviceRules(r.Devices)
	return err
}

// Update changes limits. Devices are changed only if r names some.
func (g *Group) Update(r *specs.LinuxResources) error {
	if err := CheckResources(r); err != nil {
		return err
	}
	if err := g.handDown(needed(r)); err != nil {
		return err
	}
	return g.apply(r, false)
}

// Limit is Update of a group that holds nothing yet but what waits to become
// the container: all that Create would have set is set, devices always.
func (g *Group) Limit(r *specs.LinuxResources) error {
	if err := CheckResources(r); err != nil {
		return err
	}
	return g.apply(r, true)
}

// Special says whether r wants controllers that a group made without r may not have.
func Special(r *specs.LinuxResources) bool { return len(needed(r)) > 0 }

// handDown has the groups above one of version 2 hand down controllers that were
// not asked for when it was made.
func (g *Group) handDown(want []string) error {
	for _, d := range g.dirs {
		list := both(d.controllers, want)
		if !d.v2 || len(list) == 0 {
			continue
		}
		at := d.mount
		for part := range strings.SplitSeq(g.path[1:], "/") {
			if err := enable(at, list); err != nil {
				return err
			}
			at = filepath.Join(at, part)
		}
	}
	return nil
}

func (g *Group) apply(r *specs.LinuxResources, fresh bool) error {
	if r == nil {
		r = &specs.LinuxResources{}
	}
	if fresh || len(r.Devices) > 0 {
		if err := g.setDevices(r.Devices, fresh); err != nil {
			return fmt.Errorf("devices: %w", err)
		}
	}
	if err := g.setMemory(r.Memory); err != nil {
		return fmt.Errorf("memory limit: %w", err)
	}
	for _, s := range g.settings(r) {
		if err := g.set(s); err != nil {
			return fmt.Errorf("%s limit: %w", s.controller, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.Unified)) { // cpu.max comes before cpu.max.burst, as it must
		if err := g.setUnified(name, r.Unified[name]); err != nil {
			return fmt.Errorf("unified %s: %w", name, err)
		}
	}
	return nil
}

// setUnified writes a value to a file of version 2, line by line: those with
// several keys (io.max) take one with each write.
func (g *Group) setUnified(name, value string) error {
	if g.unified == nil {
		return fmt.Errorf("there is no version 2 hierarchy: %w", ErrMissing)
	}
	for line := range strings.SplitSeq(strings.TrimSuffix(value, "\n"), "\n") {
		if err := write(g.unified.Name(), name, line); err != nil {
			return g.notHere(g.unified.Name(), controllerOf(name), err)
		}
	}
	return nil
}

// controllerOf is whose file it is.
func controllerOf(file string) string {
	controller, _, _ := strings.Cut(file, ".")
	return controller
}

// notHere explains that there is no such file in a group of version 2: those
// above it have to hand its controller down.
func (g *Group) notHere(at, controller string, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if on, rerr := read(at, "cgroup.controllers"); rerr != nil || slices.Contains(strings.Fields(on), controller) {
		return err
	}
	return fmt.Errorf("%s has no controller %q, which the cgroup above does not hand down: %w", at, controller, ErrMissing)
}

func (g *Group) set(s setting) error {
	d, ok := g.find(s.controller)
	if !ok {
		return ErrMissing
	}
	err := write(d.path, s.file, s.value)
	if s.optional && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil && d.v2 {
		return g.notHere(d.path, s.controller, err)
	}
	return err
}

// v2 tells which version has a controller.
func (g *Group) v2(controller string) bool { d, _ := g.find(controller); return d.v2 }

// setMemory writes the limits of memory and swap. In version 1 the limit of
// both together must never be below that of memory alone, also in between.
func (g *Group) setMemory(m *specs.LinuxMemory) error {
	if m == nil {
		return nil
	}
	if m.Limit != nil && *m.Limit < 0 && (m.Swap == nil || *m.Swap == 0) { // no limit of memory is none of both together
		all := *m
		all.Swap = m.Limit
		m = &all
	}
	if g.v2("memory") {
		return g.setMemory2(m)
	}
	var list []setting
	add := func(file string, n *int64, v2 bool) {
		if n != nil && *n != 0 {
			list = append(list, setting{controller: "memory", file: file, value: limit(*n, v2)})
		}
	}
	add("memory.limit_in_bytes", m.Limit, false)
	add("memory.memsw.limit_in_bytes", m.Swap, false)
	if len(list) == 2 {
		d, _ := g.find("memory")
		now, err := number(d.path, "memory.memsw.limit_in_bytes")
		if errors.Is(err, fs.ErrNotExist) { // booted with swapaccount=0
			list = list[:1]
		} else if err != nil {
			return err
		} else if now != 0 && (*m.Limit < 0 || uint64(*m.Limit) > now) {
			list[0], list[1] = list[1], list[0]
		}
	}
	add("memory.soft_limit_in_bytes", m.Reservation, false)
	if m.Swappiness != nil {
		list = append(list, setting{controller: "memory", file: "memory.swappiness", value: strconv.FormatUint(*m.Swappiness, 10)})
	}
	if m.DisableOOMKiller != nil && *m.DisableOOMKiller {
		list = append(list, setting{controller: "memory", file: "memory.oom_control", value: "1"})
	}
	return g.setAll(list)
}

// setMemory2 is setMemory for version 2, which limits swap by itself.
func (g *Group) setMemory2(m *specs.LinuxMemory) error {
	var list []setting
	add := func(file string, n *int64) {
		if n != nil && *n != 0 {
			list = append(list, setting{controller: "memory", file: file, value: limit(*n, true)})
		}
	}
	add("memory.max", m.Limit)
	if m.Swap != nil && *m.Swap != 0 {
		value := "max"
		if *m.Swap > 0 {
			n, err := g.swapAlone(m)
			if err != nil {
				return err
			}
			value = strconv.FormatInt(n, 10)
		}
		// A kernel may be without swap accounting.
		list = append(list, setting{"memory", "memory.swap.max", value, true})
	}
	add("memory.low", m.Reservation)
	return g.setAll(list)
}

// swapAlone is what the limit of memory and swap together leaves for swap.
func (g *Group) swapAlone(m *specs.LinuxMemory) (int64, error) {
	limit := int64(0)
	if m.Limit != nil && *m.Limit != 0 {
		limit = *m.Limit
	} else if d, ok := g.find("memory"); ok { // as it is now
		n, err := number(d.path, "memory.max")
		if err != nil {
			return 0, g.notHere(d.path, "memory", err)
		}
		limit = int64(n)
	}
	switch {
	case limit <= 0:
		return 0, fmt.Errorf("memory and swap together, %d, want a limit of memory", *m.Swap)
	case limit > *m.Swap:
		return 0, fmt.Errorf("memory and swap together, %d, are below the limit of memory, %d", *m.Swap, limit)
	}
	return *m.Swap - limit, nil
}

func (g *Group) setAll(list []setting) error {
	for _, s := range list {
		if err := g.set(s); err != nil {
			return err
		}
	}
	return nil
}

func limit(n int64, v2 bool) string {
	if n < 0 && v2 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

// settings lists the files to write but for memory's.
func (g *Group) settings(r *specs.LinuxResources) []setting {
	var list []setting
	add := func(controller, file string, value any) {
		list = append(list, setting{controller: controller, file: file, value: fmt.Sprint(value)})
	}
	if c := r.CPU; c != nil {
		g.cpuSettings(c, add)
	}
	if r.Pids != nil && r.Pids.Limit != nil {
		value := "max"
		if *r.Pids.Limit > 0 {
			value = strconv.FormatInt(*r.Pids.Limit, 10)
		}
		add("pids", "pids.max", value)
	}
	if b := r.BlockIO; b != nil {
		g.ioSettings(b, add)
	}
	for _, h := range r.HugepageLimits {
		what := "limit_in_bytes"
		if g.v2("hugetlb") {
			what = "max"
		}
		add("hugetlb", "hugetlb."+h.Pagesize+"."+what, h.Limit)
		// Since Linux 5.7 also what is only reserved, so that mmap fails and not a touch.
		list = append(list, setting{"hugetlb", "hugetlb." + h.Pagesize + ".rsvd." + what, strconv.FormatUint(h.Limit, 10), true})
	}
	if n := r.Network; n != nil {
		if n.ClassID != nil {
			add("net_cls", "net_cls.classid", *n.ClassID)
		}
		for _, p := range n.Priorities {
			add("net_prio", "net_prio.ifpriomap", fmt.Sprintf("%s %d", p.Name, p.Priority))
		}
	}
	for name, l := range r.Rdma {
		add("rdma", "rdma.max", rdma(name, l))
	}
	return list
}

func rdma(name string, l specs.LinuxRdma) string {
	s := name
	if l.HcaHandles != nil {
		s += fmt.Sprintf(" hca_handle=%d", *l.HcaHandles)
	}
	if l.HcaObjects != nil {
		s += fmt.Sprintf(" hca_object=%d", *l.HcaObjects)
	}
	return s
}

func (g *Group) cpuSettings(c *specs.LinuxCPU, add func(string, string, any)) {
	if c.Cpus != "" {
		add("cpuset", "cpuset.cpus", c.Cpus)
	}
	if c.Mems != "" {
		add("cpuset", "cpuset.mems", c.Mems)
	}
	if c.Idle != nil { // while it is set, a weight is refused
		idle := func() { add("cpu", "cpu.idle", *c.Idle) }
		if *c.Idle == 0 {
			idle()
		} else {
			defer idle()
		}
	}
	if g.v2("cpu") {
		g.cpuSettings2(c, add)
		return
	}
	if c.Shares != nil && *c.Shares != 0 {
		add("cpu", "cpu.shares", *c.Shares)
	}
	if c.Period != nil && *c.Period != 0 {
		add("cpu", "cpu.cfs_period_us", *c.Period)
	}
	if c.Quota != nil && *c.Quota != 0 {
		add("cpu", "cpu.cfs_quota_us", *c.Quota)
	}
	if c.Burst != nil {
		add("cpu", "cpu.cfs_burst_us", *c.Burst)
	}
	if c.RealtimePeriod != nil && *c.RealtimePeriod != 0 {
		add("cpu", "cpu.rt_period_us", *c.RealtimePeriod)
	}
	if c.RealtimeRuntime != nil && *c.RealtimeRuntime != 0 {
		add("cpu", "cpu.rt_runtime_us", *c.RealtimeRuntime)
	}
}

func (g *Group) cpuSettings2(c *specs.LinuxCPU, add func(string, string, any)) {
	if c.Shares != nil && *c.Shares != 0 {
		add("cpu", "cpu.weight", Weight(*c.Shares))
	}
	if c.Quota != nil && *c.Quota != 0 || c.Period != nil && *c.Period != 0 {
		value := "max"
		if c.Quota != nil && *c.Quota > 0 {
			value = strconv.FormatInt(*c.Quota, 10)
		} else if c.Quota == nil || *c.Quota == 0 { // stays as it is, but has to be written
			d, _ := g.find("cpu")
			if now, err := read(d.path, "cpu.max"); err == nil {
				value, _, _ = strings.Cut(now, " ")
			}
		}
		if c.Period != nil && *c.Period != 0 {
			value += " " + strconv.FormatUint(*c.Period, 10)
		}
		add("cpu", "cpu.max", value)
	}
	if c.Burst != nil {
		add("cpu", "cpu.max.burst", *c.Burst)
	}
}

// Weight turns version 1's shares (2 to 262144) into version 2's weight (1 to
// 10000), linearly as Kubernetes' KEP 2254 has it.
func Weight(shares uint64) uint64 {
	shares = min(max(shares, 2), 262144)
	return 1 + (shares-2)*9999/262142
}

// ioWeight turns version 1's weight (10 to 1000) into that of version 2 (1 to
// 10000), linearly as others do. BFQ's files have the same scale in both.
func ioWeight(w uint16) uint64 {
	n := uint64(min(max(w, 10), 1000))
	return 1 + (n-10)*9999/990
}

func (g *Group) ioSettings(b *specs.LinuxBlockIO, add func(string, string, any)) {
	controller, weight := "blkio", "blkio.weight"
	if g.v2("io") {
		controller, weight = "io", "io.weight"
	}
	if d, ok := g.find(controller); ok {
		bfq := strings.Replace(weight, ".", ".bfq.", 1)
		if _, err := os.Stat(filepath.Join(d.path, bfq)); err == nil {
			weight = bfq
		}
	}
	scale := func(w uint16) uint64 { return uint64(w) }
	if weight == "io.weight" {
		scale = ioWeight
	}
	if b.Weight != nil && *b.Weight != 0 {
		add(controller, weight, scale(*b.Weight))
	}
	for _, w := range b.WeightDevice {
		if w.Weight != nil {
			file := weight
			if controller == "blkio" {
				file += "_device"
			}
			add(controller, file, fmt.Sprintf("%d:%d %d", w.Major, w.Minor, scale(*w.Weight)))
		}
	}
	for _, t := range []struct {
		list   []specs.LinuxThrottleDevice
		v1, v2 string
	}{
		{b.ThrottleReadBpsDevice, "blkio.throttle.read_bps_device", "rbps"},
		{b.ThrottleWriteBpsDevice, "blkio.throttle.write_bps_device", "wbps"},
		{b.ThrottleReadIOPSDevice, "blkio.throttle.read_iops_device", "riops"},
		{b.ThrottleWriteIOPSDevice, "blkio.throttle.write_iops_device", "wiops"},
	} {
		for _, d := range t.list {
			if controller == "io" {
				rate := strconv.FormatUint(d.Rate, 10)
				if d.Rate == 0 { // none, as in version 1
					rate = "max"
				}
				add("io", "io.max", fmt.Sprintf("%d:%d %s=%s", d.Major, d.Minor, t.v2, rate))
			} else {
				add("blkio", t.v1, fmt.Sprintf("%d:%d %d", d.Major, d.Minor, d.Rate))
			}
		}
	}
}
