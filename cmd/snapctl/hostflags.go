package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/userns"
)

// hostFlags registers what a container takes of its machine, and what it shares.
func hostFlags(f *flagSet, a *control.CreateArgs) {
	f.add("annotation", "NAME=VALUE", "an annotation for the runtime", func(s string) error {
		name, value, ok := strings.Cut(s, "=")
		if !ok || name == "" {
			return fmt.Errorf("%q: want NAME=VALUE", s)
		}
		put(&a.Annotations, name, value)
		return nil
	})
	bounded(f, "blkio-weight", "share of disk time, 10 to 1000", 10, 1000, func(n int64) { a.BlkioWeight = uint16(n) })
	f.text(&a.CgroupParent, "cgroup-parent", "PATH", "make the container's cgroup below this one")
	bounded(f, "cpu-shares,c", "share of the CPUs, 2 to 262144 (default 1024)", 2, 262144, func(n int64) { a.CPUShares = uint64(n) })
	f.text(&a.CPUs, "cpuset-cpus", "LIST", "run on these CPUs, such as 0-3,5")
	f.text(&a.MemoryNodes, "cpuset-mems", "LIST", "take memory of these nodes")
	f.add("device", "DEVICE", "a device of this machine: PATH[:PATH][:rwm], or VENDOR/CLASS=NAME of a CDI file", func(s string) error {
		if isDescribed(s) {
			a.CDI = append(a.CDI, s)
			return nil
		}
		d, err := parseDevice(s)
		a.Devices = append(a.Devices, d)
		return err
	})
	f.add("gpus", "WHICH", "GPUs of NVIDIA: all, a number, or device=NAME[,NAME] (--device nvidia.com/gpu=NAME)", func(s string) error {
		names, err := parseGPUs(s)
		a.CDI = append(a.CDI, names...)
		return err
	})
	f.list(&a.GroupAdd, "group-add", "GROUP", "a further group, by name or number")
	f.add("ipc", "MODE", "IPC namespace: private (default), host, or container:NAME", func(s string) error { a.IPC = s; return namespaceMode(s, true) })
	f.add("label-file", "FILE", "attach the labels in FILE, one a line", func(s string) error { return readLabels(s, a) })
	f.add("memory-reservation", "SIZE", "memory to be left when there is little", func(s string) (err error) { a.MemoryReservation, err = parseBytes(s); return err })
	f.add("memory-swap", "SIZE", "limit memory and swap together, -1 for no limit (default twice the memory)", func(s string) (err error) {
		if s == "-1" {
			a.MemorySwap = -1
			return nil
		}
		a.MemorySwap, err = parseBytes(s)
		return err
	})
	bounded(f, "oom-score-adj", "how readily the kernel kills it when memory is out, -1000 to 1000", -1000, 1000, func(n int64) { a.OOMScoreAdj = int(n) })
	f.add("pid", "MODE", "PID namespace: private (default), host, or container:NAME", func(s string) error { a.PID = s; return namespaceMode(s, true) })
	f.flag(&a.Privileged, "privileged", "let the container do to this machine what root can")
	f.add("shm-size", "SIZE", "size of /dev/shm (default 64m)", func(s string) (err error) {
		if a.ShmSize, err = parseBytes(s); err == nil && a.ShmSize == 0 {
			err = fmt.Errorf("%q: want a size such as 64m", s)
		}
		return err
	})
	bounded(f, "stop-timeout", "seconds from the stop signal to SIGKILL, -1 for ever (default 10)", -1, 1<<31-1, func(n int64) {
		t := int(n)
		a.StopTimeout = &t
	})
	f.add("sysctl", "NAME=VALUE", "set a kernel parameter of the container's namespaces", func(s string) error {
		name, value, ok := strings.Cut(s, "=")
		if !ok || name == "" {
			return fmt.Errorf("%q: want NAME=VALUE", s)
		}
		put(&a.Sysctls, name, value)
		return nil
	})
	f.add("userns", "MODE", "users: host (default), auto[:size=N] for a range of its own, or container:NAME", func(s string) error {
		a.UserNS = s
		_, err := userns.Parse(s)
		return err
	})
	f.add("uts", "MODE", "UTS namespace, which has the host name: private (default) or host", func(s string) error { a.UTS = s; return namespaceMode(s, false) })
}

func put(m *map[string]string, name, value string) {
	if *m == nil {
		*m = map[string]string{}
	}
	(*m)[name] = value
}

// bounded registers a number.
func bounded(f *flagSet, names, help string, least, most int64, set func(int64)) {
	f.add(names, "N", help, func(s string) error {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < least || n > most {
			return fmt.Errorf("%q: want %d to %d", s, least, most)
		}
		set(n)
		return nil
	})
}

func namespaceMode(s string, joins bool) error {
	if s == "host" || s == "private" {
		return nil
	}
	if _, ok := control.OtherContainer(s); ok && joins {
		return nil
	}
	if !joins {
		return fmt.Errorf("%q: want private or host", s)
	}
	return fmt.Errorf("%q: want private, host or container:NAME", s)
}

// isDescribed tells a device's name in a CDI file, VENDOR/CLASS=NAME, from a path. The daemon looks closer.
func isDescribed(s string) bool {
	kind, name, ok := strings.Cut(s, "=")
	return ok && name != "" && !strings.HasPrefix(s, "/") && strings.Contains(kind, "/")
}

// gpu is what the names begin with that NVIDIA's tools give GPUs.
const gpu = "nvidia.com/gpu="

// maxGPUs bounds how many can be asked for by their number.
const maxGPUs = 64

// parseGPUs reads what docker takes: all, N or count=N for the first N, device=NAME,NAME.
// Docker's quotes around the last, which its own reader wants, may be there.
func parseGPUs(s string) (names []string, err error) {
	s = strings.TrimSuffix(strings.TrimPrefix(s, `"`), `"`)
	if list, ok := strings.CutPrefix(s, "device="); ok {
		for name := range strings.SplitSeq(list, ",") {
			if name == "" || strings.Contains(name, "=") {
				return nil, fmt.Errorf("%q: want device=NAME[,NAME]", s)
			}
			names = append(names, gpu+name)
		}
		return names, nil
	}
	count := strings.TrimPrefix(s, "count=")
	if count == "all" {
		return []string{gpu + "all"}, nil
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 1 || n > maxGPUs {
		return nil, fmt.Errorf("%q: want all, a number up to %d, or device=NAME[,NAME]", s, maxGPUs)
	}
	for i := range n {
		names = append(names, gpu+strconv.Itoa(i))
	}
	return names, nil
}

// parseDevice reads PATH[:PATH-INSIDE][:rwm].
func parseDevice(s string) (d control.Device, err error) {
	if !strings.HasPrefix(s, "/") {
		return d, fmt.Errorf("%q: want the path of a device, or VENDOR/CLASS=NAME", s)
	}
	parts := strings.Split(s, ":")
	d = control.Device{Host: parts[0], Inside: parts[0], Access: "rwm"}
	access := func(s string) bool { return s != "" && len(s) <= 3 && strings.Trim(s, "rwm") == "" }
	switch len(parts) {
	case 1:
	case 2:
		if access(parts[1]) {
			d.Access = parts[1]
		} else {
			d.Inside = parts[1]
		}
	case 3:
		d.Inside, d.Access = parts[1], parts[2]
	default:
		return d, fmt.Errorf("%q: want PATH[:PATH][:rwm]", s)
	}
	if !path.IsAbs(d.Inside) {
		return d, fmt.Errorf("%q: %q is no absolute path", s, d.Inside)
	}
	if !access(d.Access) {
		return d, fmt.Errorf("%q: access %q: want of the letters r, w and m", s, d.Access)
	}
	return d, nil
}

// readLabels adds the labels in a file; those of --label win, wherever they stand.
func readLabels(name string, a *control.CreateArgs) error {
	b, err := readFile(name)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		label, value, _ := strings.Cut(line, "=")
		if label == "" {
			return fmt.Errorf("%s: %q: the name is empty", name, line)
		}
		if _, given := a.Labels[label]; !given {
			put(&a.Labels, label, value)
		}
	}
	return nil
}

// A cidFile is where the ID of the new container is written.
type cidFile struct {
	name string
	f    *os.File
}

// open makes the file before the container: one that exists is somebody's.
func (c *cidFile) open() (err error) {
	if c.name == "" {
		return nil
	}
	c.f, err = os.OpenFile(c.name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("--cidfile %s: it exists: remove it, or that container is still in use", c.name)
	}
	return err
}

// close writes the ID, or removes the file if there is no container.
func (c *cidFile) close(id string) error {
	if c.f == nil {
		return nil
	}
	if id == "" {
		return errors.Join(c.f.Close(), os.Remove(c.name))
	}
	_, err := c.f.WriteString(id)
	return errors.Join(err, c.f.Close())
}
