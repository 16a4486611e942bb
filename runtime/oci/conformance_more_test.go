package oci

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// relative is limit with a cgroupsPath that is relative: where that begins is
// the runtime's choice, and the process's groups tell.
func relative(r *specs.LinuxResources, want map[string]string) func(*bench) {
	return func(b *bench) {
		relativePath(b)
		b.spec.Linux.Resources = r
		b.controllers(want)
		b.starts()
		groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", b.state().Pid))
		must(b.t, err)
		for file, value := range want {
			b.limited(string(groups), file, value)
		}
		b.end()
		b.ok("delete", b.id)
	}
}

// controllers skips on a machine that lacks one of version 1.
func (b *bench) controllers(files map[string]string) {
	for file := range files {
		if _, err := os.Stat("/sys/fs/cgroup/" + filepath.Dir(file)); err != nil {
			b.t.Skip("this machine has no cgroup controller " + filepath.Dir(file) + " of version 1")
		}
	}
}

// limited looks into a file of the group that a line of /proc/PID/cgroup names.
func (b *bench) limited(groups, file, want string) {
	b.t.Helper()
	controller := filepath.Dir(file)
	for line := range strings.Lines(groups) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		names, path, _ := strings.Cut(rest, ":")
		if !strings.Contains(","+names+",", ","+controller+",") {
			continue
		}
		got, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", controller, path, filepath.Base(file)))
		if err != nil || strings.TrimSpace(string(got)) != want {
			b.t.Errorf("%s: %q, %v, want %q", file, got, err, want)
		}
		return
	}
	b.t.Errorf("no group of %s: %s", controller, groups)
}

// disk is the number of some block device; 0, 0 if there is none.
func disk() (major, minor int64) {
	list, _ := filepath.Glob("/sys/block/*/dev")
	for _, name := range list {
		text, err := os.ReadFile(name)
		if n, _ := fmt.Sscanf(string(text), "%d:%d", &major, &minor); err == nil && n == 2 {
			return major, minor
		}
	}
	return 0, 0
}

// throttles are the limits of linux_cgroups_blkio that need no scheduler of a kind.
func throttles(do func(*specs.LinuxResources, map[string]string) func(*bench)) func(*bench) {
	return func(b *bench) {
		major, minor := disk()
		if major == 0 {
			b.t.Skip("this machine has no block device")
		}
		d := func(rate uint64) []specs.LinuxThrottleDevice {
			return []specs.LinuxThrottleDevice{{LinuxBlockIODevice: specs.LinuxBlockIODevice{Major: major, Minor: minor}, Rate: rate}}
		}
		want := func(rate int) string { return fmt.Sprintf("%d:%d %d", major, minor, rate) }
		do(&specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleReadBpsDevice: d(102400), ThrottleWriteBpsDevice: d(204800), ThrottleReadIOPSDevice: d(1024), ThrottleWriteIOPSDevice: d(2048)}},
			map[string]string{"blkio/blkio.throttle.read_bps_device": want(102400), "blkio/blkio.throttle.write_bps_device": want(204800),
				"blkio/blkio.throttle.read_iops_device": want(1024), "blkio/blkio.throttle.write_iops_device": want(2048)})(b)
	}
}

// devicesRules are what linux_cgroups_devices sets.
var devicesRules = []specs.LinuxDeviceCgroup{
	{Allow: false, Access: "rwm"}, {Allow: true, Type: "c", Major: to(int64(10)), Minor: to(int64(229)), Access: "rwm"},
	{Allow: true, Type: "b", Major: to(int64(8)), Minor: to(int64(20)), Access: "rw"}, {Allow: true, Type: "b", Major: to(int64(10)), Minor: to(int64(200)), Access: "r"},
}

func deviceLists(change func(*bench)) func(*bench) {
	return func(b *bench) {
		change(b)
		b.spec.Linux.Resources = &specs.LinuxResources{Devices: devicesRules}
		b.controllers(map[string]string{"devices/devices.list": ""})
		b.starts()
		groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", b.state().Pid))
		must(b.t, err)
		for line := range strings.Lines(string(groups)) {
			if _, path, ok := strings.Cut(strings.TrimSpace(line), ":devices:"); ok {
				list, err := os.ReadFile("/sys/fs/cgroup/devices" + path + "/devices.list")
				must(b.t, err)
				wants(b.t, string(list), "c 10:229 rwm\n", "b 8:20 rw\n", "b 10:200 r\n")
				if strings.Contains(string(list), "a *:*") {
					b.t.Errorf("all is allowed: %s", list)
				}
			}
		}
		b.end()
		b.ok("delete", b.id)
	}
}

var (
	someCPU    = &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: to(uint64(1024)), Quota: to(int64(100000)), Period: to(uint64(50000))}}
	someMemory = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: to(int64(50 << 20)), Reservation: to(int64(20 << 20)), Swap: to(int64(60 << 20)), Swappiness: to(uint64(50))}}
)

// hugePages looks in either version; crun's view has one only.
func hugePages(path func(*bench)) func(*bench) {
	return func(b *bench) {
		path(b)
		b.spec.Linux.Resources = &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 56892210544640}}}
		files, _ := filepath.Glob("/sys/fs/cgroup/hugetlb/hugetlb.2MB.usage_in_bytes")
		v2, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.controllers")
		has := len(files) > 0
		for _, name := range v2 {
			text, _ := os.ReadFile(name)
			has = has || strings.Contains(string(text), "hugetlb")
		}
		if !has {
			b.t.Skip("this machine has no cgroup controller hugetlb")
		}
		b.starts()
		groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", b.state().Pid))
		must(b.t, err)
		found := false
		for line := range strings.Lines(string(groups)) {
			part := strings.SplitN(strings.TrimSpace(line), ":", 3)
			for _, file := range []string{"hugetlb" + part[2] + "/hugetlb.2MB.limit_in_bytes", "unified" + part[2] + "/hugetlb.2MB.max"} {
				got, err := os.ReadFile("/sys/fs/cgroup/" + file)
				found = found || err == nil && strings.TrimSpace(string(got)) == "56892210544640"
			}
		}
		if !found {
			b.t.Errorf("no group has the limit: %s", groups)
		}
		b.end()
		b.ok("delete", b.id)
	}
}

func absolute(b *bench) { b.sweep() }

func relativePath(b *bench) {
	b.spec.Linux.CgroupsPath = "snapfs-test-relative-" + b.id
	b.sweep()
}

// sweep removes the container's cgroups when the test ends: crun leaves them when it fails.
func (b *bench) sweep() {
	path := strings.TrimPrefix(b.spec.Linux.CgroupsPath, "/")
	b.t.Cleanup(func() {
		list, _ := filepath.Glob("/sys/fs/cgroup/*/" + path)
		for _, dir := range append(list, "/sys/fs/cgroup/"+path) {
			_ = os.Remove(dir)
		}
	})
}

var moreChecks = []check{
	{name: "config_updates_without_affect", do: func(b *bench) {
		b.spec.Linux.MaskedPaths = []string{"/proc/kcore"}
		b.spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
		b.spec.Process.OOMScoreAdj = to(100)
		b.spec.Process.Args = []string{"/inside", "cat", "/proc/sys/net/ipv4/ip_forward", ";", "cat", "/proc/self/oom_score_adj", ";", "trap"}
		b.create()
		must(b.t, os.WriteFile(filepath.Join(b.bundle, "config.json"), []byte(`{"ociVersion": "1.0.0"}`), 0o600))
		b.ok("start", b.id)
		wants(b.t, b.end(), "1\n100\n")
		b.ok("delete", b.id)
		b.gone()
	}},
	{name: "delete_only_create_resources", do: func(b *bench) {
		b.controllers(map[string]string{"pids/x": ""})
		other := "/sys/fs/cgroup/pids/snapfs-test-other-" + b.id
		must(b.t, os.Mkdir(other, 0o755))
		defer func() { must(b.t, os.Remove(other)) }()
		b.spec.Process.Args = []string{"/inside", "trap"}
		b.create()
		must(b.t, os.WriteFile(filepath.Join(other, "tasks"), []byte(strconv.Itoa(b.state().Pid)), 0))
		b.ok("start", b.id)
		b.end()
		b.ok("delete", b.id)
		if _, err := os.Stat(other); err != nil {
			b.t.Errorf("a cgroup that is not the container's: %v", err)
		}
	}},
	{name: "linux_cgroups_blkio", do: throttles(limit)},
	{name: "linux_cgroups_hugetlb", crun: "is given a view without the version that has hugetlb here", do: hugePages(absolute)},
	{name: "linux_cgroups_network", do: limit(&specs.LinuxResources{Network: &specs.LinuxNetwork{ClassID: to(uint32(255)), Priorities: []specs.LinuxInterfacePriority{{Name: "lo", Priority: 10}}}},
		map[string]string{"net_cls/net_cls.classid": "255"})},
	{name: "linux_cgroups_devices: the list", do: deviceLists(absolute)},
	{name: "linux_cgroups_relative_blkio", do: throttles(relative)},
	{name: "linux_cgroups_relative_cpus", do: relative(someCPU, map[string]string{"cpu/cpu.shares": "1024", "cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "50000"})},
	{name: "linux_cgroups_relative_devices", do: deviceLists(relativePath)},
	{name: "linux_cgroups_relative_hugetlb", crun: "is given a view without the version that has hugetlb here", do: hugePages(relativePath)},
	{name: "linux_cgroups_relative_memory", do: relative(someMemory, map[string]string{"memory/memory.limit_in_bytes": "52428800", "memory/memory.soft_limit_in_bytes": "20971520", "memory/memory.memsw.limit_in_bytes": "62914560", "memory/memory.swappiness": "50"})},
	{name: "linux_cgroups_relative_network", do: relative(&specs.LinuxResources{Network: &specs.LinuxNetwork{ClassID: to(uint32(255))}}, map[string]string{"net_cls/net_cls.classid": "255"})},
	{name: "linux_cgroups_relative_pids", do: relative(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: to(int64(1000))}}, map[string]string{"pids/pids.max": "1000"})},
	{name: "linux_gid_mappings", do: func(b *bench) {
		b.userNS()
		must(b.t, os.Chown(filepath.Join(b.bundle, "rootfs/tmp"), hostIDs, hostIDs+7))
		runsWith([]string{"cat", "/proc/self/gid_map", ";", "stat", "/tmp"}, nil, "0     300000      65536\n", "/tmp 40755 0:7")(b)
	}},
	{name: "linux_mount_label", crun: "ignores what the kernel does not have", do: func(b *bench) {
		if _, err := os.Stat("/sys/fs/selinux/enforce"); err == nil {
			b.t.Skip("this kernel has SELinux")
		}
		refuses(func(s *specs.Spec) { s.Linux.MountLabel = "system_u:object_r:svirt_sandbox_file_t:s0:c715,c811" })(b)
	}},
	{name: "linux_process", do: runsWith([]string{"cat", "/proc/self/oom_score_adj", ";", "grep", "NoNewPrivs", "/proc/self/status", ";", "grep", "CapBnd", "/proc/self/status"}, func(s *specs.Spec) {
		s.Process.OOMScoreAdj, s.Process.NoNewPrivileges = to(500), true
		all := []string{"CAP_CHOWN", "CAP_NET_ADMIN", "CAP_SYS_ADMIN"}
		s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Permitted: all, Effective: all}
	}, "500\n", "NoNewPrivs:\t1", "CapBnd:\t0000000000201001")},
	{name: "mounts_recursive: atime and symfollow", crun: "1.8 knows no rnosymfollow", do: func(b *bench) {
		src := b.t.TempDir()
		must(b.t, os.Mkdir(filepath.Join(src, "sub"), 0o755))
		must(b.t, unix.Mount("tmpfs", filepath.Join(src, "sub"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""))
		must(b.t, unix.Mount("", filepath.Join(src, "sub"), "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY, ""))
		defer func() { must(b.t, unix.Unmount(filepath.Join(src, "sub"), unix.MNT_DETACH)) }()
		runsWith([]string{"grep", " /m/sub ", "/proc/mounts", ";", "grep", " /n/sub ", "/proc/mounts"}, func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/m", Type: "bind", Source: src, Options: []string{"rbind", "rnoatime", "rnodiratime", "rnosymfollow"}},
				specs.Mount{Destination: "/n", Type: "bind", Source: src, Options: []string{"rbind", "rrw", "rsuid", "rdev", "rexec", "rstrictatime"}})
		}, "/m/sub tmpfs ro,nosuid,nodev,noexec,noatime,nodiratime,nosymfollow", "/n/sub tmpfs rw 0 0")(b)
	}},
	{name: "prestart", do: func(b *bench) {
		//lint:ignore SA1019 a deprecated hook is one nevertheless
		b.spec.Hooks = &specs.Hooks{Prestart: []specs.Hook{b.hook("prestart", "test ! -e "+b.bundle+"/rootfs/tmp/ran")}}
		b.starts("write", "/tmp/ran", "x", ";")
		b.end()
		if names, _ := b.hookLog(); strings.Join(names, " ") != "prestart" {
			b.t.Errorf("hooks %v", names)
		}
	}},
	{name: "poststart", do: func(b *bench) {
		b.spec.Hooks = &specs.Hooks{Poststart: []specs.Hook{b.hook("poststart", ":")}}
		b.spec.Process.Args = []string{"/inside", "trap"}
		b.create()
		if names, _ := b.hookLog(); len(names) != 0 {
			b.t.Errorf("before start ran %v", names)
		}
		b.ok("start", b.id)
		if names, _ := b.hookLog(); strings.Join(names, " ") != "poststart" {
			b.t.Errorf("when start has returned, hooks %v", names)
		}
		b.end()
	}},
	{name: "poststop", do: func(b *bench) {
		b.spec.Hooks = &specs.Hooks{Poststop: []specs.Hook{b.hook("poststop", ":")}}
		b.starts()
		b.end()
		b.waitFor(specs.StateStopped)
		if names, _ := b.hookLog(); len(names) != 0 {
			b.t.Errorf("before delete ran %v", names)
		}
		b.ok("delete", b.id)
		if names, _ := b.hookLog(); strings.Join(names, " ") != "poststop" {
			b.t.Errorf("when delete has returned, hooks %v", names)
		}
	}},
	{name: "process_capabilities_fail", do: func(b *bench) { // an error, or since 1.1 of the specification a warning
		c := b.spec.Process.Capabilities
		c.Bounding = append(c.Bounding, "CAP_TEST")
		b.spec.Process.Args = []string{"/inside", "exit", "0"}
		b.write()
		log := filepath.Join(b.bundle, "messages")
		out, err := b.run("--log", log, "run", "--bundle", b.bundle, b.id)
		text, _ := os.ReadFile(log)
		if err == nil && !strings.Contains(string(text)+out, "CAP_TEST") {
			b.t.Errorf("CAP_TEST was taken without a word: %s%s", out, text)
		}
	}},
}
