package cgroups

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/snapfs/snapfs/runtime/systemd"
)

// Adopt makes of a group that systemd has made one as Create makes it: in the
// hierarchies that systemd leaves alone, and with limits. Somebody may be in it.
// If it fails, what it has made is left for whoever ends the unit.
func Adopt(p string, r *specs.LinuxResources) (_ *Group, err error) {
	if err := CheckPath(p); err != nil {
		return nil, err
	}
	list, err := mounted()
	if err != nil {
		return nil, err
	}
	g := &Group{path: p, adopted: true}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Release())
		}
	}()
	want := append(wanted(list, r), systemdHierarchy) // in which systemd sees that the unit has ended
	for _, h := range list {
		if h.v2 || len(both(h.controllers, want)) > 0 {
			if err := g.make(h, want); err != nil {
				return nil, err
			}
		}
	}
	return g, g.apply(r, true)
}

// systemdHierarchy is what version 1 calls the hierarchy without controllers that systemd has for itself.
const systemdHierarchy = "name=systemd"

// Unit are the limits in systemd's words (systemd.resource-control(5)). It
// writes them again whenever it likes, so they have to be those that Create writes.
// fresh says that the unit is new, so that no devices means the default ones.
//
// What systemd has no word for it leaves alone; so a unit needs Delegate.
func Unit(r *specs.LinuxResources, fresh bool) ([]systemd.Property, error) {
	list, err := mounted()
	if err != nil {
		return nil, err
	}
	return unit(r, fresh, func(controller string) bool {
		return slices.ContainsFunc(list, func(h hierarchy) bool { return h.v2 && slices.Contains(h.controllers, controller) }) ||
			!slices.ContainsFunc(list, func(h hierarchy) bool { return slices.Contains(h.controllers, controller) })
	})
}

// unit is Unit on a machine where v2 tells which controllers are not of version 1.
func unit(r *specs.LinuxResources, fresh bool, v2 func(string) bool) (list []systemd.Property, err error) {
	if r == nil {
		r = &specs.LinuxResources{}
	}
	add := func(name string, value any) { list = append(list, systemd.Property{Name: name, Value: value}) }
	if fresh || len(r.Devices) > 0 {
		rules, err := deviceRules(r.Devices)
		if err != nil {
			return nil, err
		}
		policy, devices := unitDevices(fold(rules))
		add("DevicePolicy", policy)
		add("DeviceAllow", []systemd.Device{}) // without the ones before
		if len(devices) > 0 {
			add("DeviceAllow", devices)
		}
	}
	unitMemory(r.Memory, v2("memory"), add)
	if c := r.CPU; c != nil {
		unitCPU(c, v2, add)
	}
	if r.Pids != nil && r.Pids.Limit != nil {
		add("TasksMax", positive(*r.Pids.Limit))
	}
	if b := r.BlockIO; b != nil && b.Weight != nil && *b.Weight != 0 && !v2("blkio") {
		add("BlockIOWeight", uint64(*b.Weight))
	}
	for _, name := range sorted(r.Unified) {
		if err := unitUnified(name, r.Unified[name], add); err != nil {
			return nil, fmt.Errorf("unified %s: %w", name, err)
		}
	}
	return list, nil
}

// positive is a limit; what is not above 0 is none.
func positive(n int64) uint64 {
	if n <= 0 {
		return systemd.Infinity
	}
	return uint64(n)
}

func unitMemory(m *specs.LinuxMemory, v2 bool, add func(string, any)) {
	if m == nil {
		return
	}
	set := func(n *int64) bool { return n != nil && *n != 0 }
	if !v2 {
		if set(m.Limit) {
			add("MemoryLimit", positive(*m.Limit))
		}
		return
	}
	if set(m.Limit) {
		add("MemoryMax", positive(*m.Limit))
	}
	switch {
	case !set(m.Swap):
	case *m.Swap < 0:
		add("MemorySwapMax", systemd.Infinity)
	case set(m.Limit) && *m.Limit > 0:
		add("MemorySwapMax", uint64(*m.Swap-*m.Limit))
	}
	if set(m.Reservation) {
		add("MemoryLow", positive(*m.Reservation))
	}
}

func unitCPU(c *specs.LinuxCPU, v2 func(string) bool, add func(string, any)) {
	if c.Shares != nil && *c.Shares != 0 {
		if v2("cpu") {
			add("CPUWeight", Weight(*c.Shares))
		} else {
			add("CPUShares", *c.Shares)
		}
	}
	quota, period := int64(0), uint64(0)
	if c.Quota != nil {
		quota = *c.Quota
	}
	if c.Period != nil {
		period = *c.Period
	}
	unitQuota(quota, period, add)
	if !v2("cpuset") {
		return // systemd knows it in version 2 only
	}
	for _, set := range [][2]string{{"AllowedCPUs", c.Cpus}, {"AllowedMemoryNodes", c.Mems}} {
		if mask, err := cpuMask(set[1]); err == nil { // else the kernel says what is wrong with it, if it is not empty
			add(set[0], mask)
		}
	}
}

// unitQuota says a quota in a period, in microseconds, as systemd does: in a
// second, and in whole hundredths of a processor, of which it would take fewer.
func unitQuota(quota int64, period uint64, add func(string, any)) {
	if quota == 0 && period == 0 {
		return
	}
	if period != 0 {
		add("CPUQuotaPeriodUSec", period)
	} else {
		period = 100000
	}
	perSecond := systemd.Infinity
	if quota > 0 {
		const grain = 10000
		perSecond = uint64(float64(quota) * 1e6 / float64(period))
		perSecond = (perSecond + grain - 1) / grain * grain
	}
	add("CPUQuotaPerSecUSec", perSecond)
}

// unitUnified says a file of version 2, if there is a word for it.
func unitUnified(name, value string, add func(string, any)) error {
	limits := map[string]string{"memory.max": "MemoryMax", "memory.high": "MemoryHigh", "memory.low": "MemoryLow", "memory.min": "MemoryMin",
		"memory.swap.max": "MemorySwapMax", "pids.max": "TasksMax", "cpu.weight": "CPUWeight"}
	number := func(s string) (uint64, error) {
		if s == "max" {
			return systemd.Infinity, nil
		}
		return strconv.ParseUint(s, 10, 64)
	}
	switch {
	case limits[name] != "":
		n, err := number(value)
		if err != nil {
			return err
		}
		add(limits[name], n)
	case name == "cpu.max":
		quota, rest, _ := strings.Cut(value, " ")
		q, err := number(quota)
		if err != nil {
			return err
		}
		period := uint64(100000)
		if rest != "" {
			if period, err = strconv.ParseUint(rest, 10, 32); err != nil {
				return err
			}
		}
		if q == systemd.Infinity {
			unitQuota(-1, period, add)
		} else {
			unitQuota(int64(min(q, 1<<62)), period, add)
		}
	case name == "cpuset.cpus" || name == "cpuset.mems":
		mask, err := cpuMask(value)
		if err != nil {
			return err
		}
		add(map[string]string{"cpuset.cpus": "AllowedCPUs", "cpuset.mems": "AllowedMemoryNodes"}[name], mask)
	}
	return nil
}

// cpuMask reads a list as of cpuset(7) into bits, the first CPU's lowest.
func cpuMask(list string) ([]byte, error) {
	mask := []byte{}
	for part := range strings.SplitSeq(strings.TrimSpace(list), ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		a, err := strconv.ParseUint(from, 10, 13) // NR_CPUS of the largest kernels is 8192
		b, berr := strconv.ParseUint(to, 10, 13)
		if err != nil || berr != nil || a > b {
			return nil, fmt.Errorf("%q is no list of numbers", list)
		}
		for ; a <= b; a++ {
			for len(mask) <= int(a/8) {
				mask = append(mask, 0)
			}
			mask[a/8] |= 1 << (a % 8)
		}
	}
	return mask, nil
}

// unitDevices says what fold returns. systemd adds a filter of its own to ours, or
// in version 1 writes our file: so it must not allow less, and in version 1 not more.
func unitDevices(allow bool, exceptions []rule) (policy string, list []systemd.Device) {
	if allow {
		return "auto", nil // it knows no lists of what is forbidden
	}
	for _, e := range exceptions {
		kind := "char"
		if e.kind == 'b' {
			kind = "block"
		}
		d := systemd.Device{}
		switch {
		case e.major < 0 && e.minor < 0:
			d.Node = kind + "-*"
		case e.minor < 0:
			d.Node = fmt.Sprintf("%s-%d", kind, e.major)
		case e.major < 0:
			continue // it has no word for it
		default:
			d.Node = fmt.Sprintf("/dev/%s/%d:%d", kind, e.major, e.minor)
		}
		for i, c := range "mrw" {
			if e.access&(1<<i) != 0 {
				d.Access += string(c)
			}
		}
		list = append(list, d)
	}
	return "strict", list
}

func sorted(m map[string]string) []string {
	var list []string
	for k := range m {
		list = append(list, k)
	}
	slices.Sort(list)
	return list
}
