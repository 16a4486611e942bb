package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/runtime/cgroups"
)

// The names in what follows are those of runc's events, which the shim and cAdvisor read.
type stats struct {
	CPU struct {
		Usage struct {
			Total  uint64   `json:"total,omitempty"` // ns
			Percpu []uint64 `json:"percpu,omitempty"`
			Kernel uint64   `json:"kernel"`
			User   uint64   `json:"user"`
		} `json:"usage"`
		Throttling struct {
			Periods          uint64 `json:"periods,omitempty"`
			ThrottledPeriods uint64 `json:"throttledPeriods,omitempty"`
			ThrottledTime    uint64 `json:"throttledTime,omitempty"`
		} `json:"throttling"`
	} `json:"cpu"`
	Memory struct {
		Cache     uint64            `json:"cache,omitempty"`
		Usage     memoryEntry       `json:"usage"`
		Swap      memoryEntry       `json:"swap"`
		Kernel    memoryEntry       `json:"kernel"`
		KernelTCP memoryEntry       `json:"kernelTCP"`
		Raw       map[string]uint64 `json:"raw,omitempty"`
	} `json:"memory"`
	Pids struct {
		Current uint64 `json:"current,omitempty"`
		Limit   uint64 `json:"limit,omitempty"`
	} `json:"pids"`
	Blkio struct {
		Bytes []blkioEntry `json:"ioServiceBytesRecursive,omitempty"`
		Ops   []blkioEntry `json:"ioServicedRecursive,omitempty"`
	} `json:"blkio"`
	Hugetlb map[string]hugetlb `json:"hugetlb"`
}

type memoryEntry struct {
	Limit   uint64 `json:"limit"`
	Usage   uint64 `json:"usage,omitempty"`
	Max     uint64 `json:"max,omitempty"`
	Failcnt uint64 `json:"failcnt"`
}

type blkioEntry struct {
	Major uint64 `json:"major"`
	Minor uint64 `json:"minor"`
	Op    string `json:"op,omitempty"`
	Value uint64 `json:"value,omitempty"`
}

type hugetlb struct {
	Usage   uint64 `json:"usage,omitempty"`
	Max     uint64 `json:"max,omitempty"`
	Failcnt uint64 `json:"failcnt"`
}

type event struct {
	Type string `json:"type"` // stats or oom
	ID   string `json:"id"`
	Data *stats `json:"data,omitempty"`
}

// events prints counters, one object a line, until the container ends.
func events(_ context.Context, c *CLI, args []string) error {
	f := c.flags("events", "[options] ID")
	once := f.Bool("stats", false, "print counters once")
	interval := f.Duration("interval", 5*time.Second, "pause between counters")
	rest, err := arguments(f, args, 1, 1)
	if err != nil {
		return err
	}
	if *interval <= 0 {
		return fmt.Errorf("--interval %v: want more than 0", *interval)
	}
	return c.withGroup(rest[0], func(k *container, g *cgroups.Group) error {
		out := json.NewEncoder(c.Stdout)
		if *once {
			return out.Encode(event{"stats", k.ID, readStats(g)})
		}
		return k.follow(g, out, *interval)
	})
}

// follow prints counters every interval, and between them that the kernel has killed somebody.
func (k *container) follow(g *cgroups.Group, out *json.Encoder, interval time.Duration) error {
	killed, err := g.OOMKills()
	if err != nil {
		return err
	}
	_, fd, err := k.status()
	if err != nil || fd < 0 {
		return err
	}
	defer unix.Close(fd)
	const look = 100 * time.Millisecond // at the number of those killed; it costs a read
	next := time.Now()
	for {
		now, err := g.OOMKills()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if now > killed {
			killed = now
			if err := out.Encode(event{Type: "oom", ID: k.ID}); err != nil {
				return err
			}
		}
		if !time.Now().Before(next) {
			next = next.Add(interval)
			if err := out.Encode(event{"stats", k.ID, readStats(g)}); err != nil {
				return err
			}
		}
		if ended := waitEnd(fd, min(look, interval)); ended {
			return nil
		}
	}
}

// waitEnd waits for a process's end, at most for a while.
func waitEnd(fd int, d time.Duration) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(d.Milliseconds()))
	return err == nil && n > 0
}

// A reader reads counters of one directory; what is not there is 0.
type reader string

func (r reader) text(name string) string {
	b, err := os.ReadFile(filepath.Join(string(r), name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// number is 0 too where the file says max.
func (r reader) number(name string) uint64 { return parse(r.text(name)) }

// limit is the largest number where the file says max.
func (r reader) limit(name string) uint64 {
	s := r.text(name)
	if s == "max" {
		return 1<<64 - 1
	}
	return parse(s)
}

func (r reader) table(name string) map[string]uint64 {
	t := map[string]uint64{}
	for line := range strings.Lines(r.text(name)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			t[k] = parse(v)
		}
	}
	return t
}

func parse(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func readStats(g *cgroups.Group) *stats {
	s := &stats{Hugetlb: map[string]hugetlb{}}
	for _, c := range []struct {
		name   string
		v1, v2 func(*stats, reader)
	}{
		{"cpuacct", cpuacct1, nil}, {"cpu", throttled1, cpu2}, {"memory", memory1, memory2}, {"pids", pids, pids},
		{"blkio", blkio1, nil}, {"io", nil, io2}, {"hugetlb", hugetlb1, hugetlb2},
	} {
		dir, v2, ok := g.Dir(c.name)
		read := c.v1
		if v2 {
			read = c.v2
		}
		if ok && read != nil {
			read(s, reader(dir))
		}
	}
	return s
}

func cpuacct1(s *stats, r reader) {
	u := &s.CPU.Usage
	u.Total, u.User, u.Kernel = r.number("cpuacct.usage"), r.number("cpuacct.usage_user"), r.number("cpuacct.usage_sys")
	for n := range strings.FieldsSeq(r.text("cpuacct.usage_percpu")) {
		u.Percpu = append(u.Percpu, parse(n))
	}
}

func throttled1(s *stats, r reader) {
	t := r.table("cpu.stat")
	h := &s.CPU.Throttling
	h.Periods, h.ThrottledPeriods, h.ThrottledTime = t["nr_periods"], t["nr_throttled"], t["throttled_time"]
}

func cpu2(s *stats, r reader) {
	t := r.table("cpu.stat")
	u, h := &s.CPU.Usage, &s.CPU.Throttling
	u.Total, u.User, u.Kernel = t["usage_usec"]*1000, t["user_usec"]*1000, t["system_usec"]*1000
	h.Periods, h.ThrottledPeriods, h.ThrottledTime = t["nr_periods"], t["nr_throttled"], t["throttled_usec"]*1000
}

func memory1(s *stats, r reader) {
	m := &s.Memory
	m.Raw = r.table("memory.stat")
	m.Cache = m.Raw["total_cache"]
	for _, e := range []struct {
		to   *memoryEntry
		name string
	}{{&m.Usage, "memory"}, {&m.Swap, "memory.memsw"}, {&m.Kernel, "memory.kmem"}, {&m.KernelTCP, "memory.kmem.tcp"}} {
		*e.to = memoryEntry{r.number(e.name + ".limit_in_bytes"), r.number(e.name + ".usage_in_bytes"), r.number(e.name + ".max_usage_in_bytes"), r.number(e.name + ".failcnt")}
	}
}

func memory2(s *stats, r reader) {
	m := &s.Memory
	m.Raw = r.table("memory.stat")
	m.Cache = m.Raw["file"]
	ev := r.table("memory.events")
	m.Usage = memoryEntry{r.limit("memory.max"), r.number("memory.current"), r.number("memory.peak"), ev["max"]}
	swap := memoryEntry{Limit: r.limit("memory.swap.max"), Usage: r.number("memory.swap.current"), Max: r.number("memory.swap.peak")}
	if swap.Limit != 1<<64-1 && m.Usage.Limit != 1<<64-1 { // of both together, as in version 1
		swap.Limit += m.Usage.Limit
	}
	swap.Usage += m.Usage.Usage
	m.Swap = swap
}

func pids(s *stats, r reader) {
	s.Pids.Current, s.Pids.Limit = r.number("pids.current"), r.number("pids.max")
}

func blkio1(s *stats, r reader) {
	for _, f := range []struct {
		to    *[]blkioEntry
		names []string
	}{
		{&s.Blkio.Bytes, []string{"blkio.bfq.io_service_bytes_recursive", "blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"}},
		{&s.Blkio.Ops, []string{"blkio.bfq.io_serviced_recursive", "blkio.throttle.io_serviced_recursive", "blkio.throttle.io_serviced"}},
	} {
		for _, name := range f.names {
			if *f.to = blkioTable(r.text(name)); len(*f.to) > 0 {
				break
			}
		}
	}
}

// blkioTable reads "8:0 Read 4096" lines; the last, a total, has no device.
func blkioTable(text string) (list []blkioEntry) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		major, minor, ok := strings.Cut(f[0], ":")
		if ok {
			list = append(list, blkioEntry{parse(major), parse(minor), f[1], parse(f[2])})
		}
	}
	return list
}

// io2 reads "8:0 rbytes=1 wbytes=2 rios=3 wios=4 …".
func io2(s *stats, r reader) {
	for line := range strings.Lines(r.text("io.stat")) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		major, minor, _ := strings.Cut(f[0], ":")
		for _, kv := range f[1:] {
			k, v, _ := strings.Cut(kv, "=")
			e := blkioEntry{Major: parse(major), Minor: parse(minor), Value: parse(v)}
			switch k {
			case "rbytes", "wbytes":
				e.Op = map[byte]string{'r': "Read", 'w': "Write"}[k[0]]
				s.Blkio.Bytes = append(s.Blkio.Bytes, e)
			case "rios", "wios":
				e.Op = map[byte]string{'r': "Read", 'w': "Write"}[k[0]]
				s.Blkio.Ops = append(s.Blkio.Ops, e)
			}
		}
	}
}

func hugetlb1(s *stats, r reader) {
	r.pageSizes(".usage_in_bytes", func(size string) {
		s.Hugetlb[size] = hugetlb{r.number("hugetlb." + size + ".usage_in_bytes"), r.number("hugetlb." + size + ".max_usage_in_bytes"), r.number("hugetlb." + size + ".failcnt")}
	})
}

func hugetlb2(s *stats, r reader) {
	r.pageSizes(".current", func(size string) {
		s.Hugetlb[size] = hugetlb{Usage: r.number("hugetlb." + size + ".current"), Failcnt: r.table("hugetlb." + size + ".events")["max"]}
	})
}

func (r reader) pageSizes(suffix string, do func(size string)) {
	list, err := filepath.Glob(filepath.Join(string(r), "hugetlb.*"+suffix))
	if err != nil {
		return
	}
	for _, name := range list {
		size := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(name), "hugetlb."), suffix)
		if !strings.Contains(size, ".") { // 2MB.rsvd
			do(size)
		}
	}
}
