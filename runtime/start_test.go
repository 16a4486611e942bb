package runtime

import "testing"

func TestStart(t *testing.T) {
	out := run(t, "pid", ";", "hostname", ";", "ids", ";", "cwd", ";", "ls", "/", ";", "ls", "/dev", ";", "grep", "Cap", "/proc/self/status",
		";", "grep", "Seccomp", "/proc/self/status", ";", "cat", "/proc/self/cgroup", ";", "cat", "/proc/self/mountinfo", ";", "fds")
	t.Log(out)
	want(t, out, "1 0\n", "box")
}
