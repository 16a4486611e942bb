package oci

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	runc "github.com/containerd/go-runc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// client is containerd's own driver of runc's command line, as the shim sets it up.
func (b *bench) client() *runc.Runc {
	return &runc.Runc{
		Command: b.bin, Root: b.root, Log: filepath.Join(b.bundle, "log.json"), LogFormat: runc.JSON, PdeathSignal: unix.SIGKILL, Setpgid: true,
	}
}

// lastError is what the shim reads of the log.
func (b *bench) lastError() string {
	f, err := os.Open(filepath.Join(b.bundle, "log.json"))
	must(b.t, err)
	defer f.Close()
	var last string
	for dec := json.NewDecoder(f); ; {
		var l struct {
			Level, Msg string
			Time       time.Time
		}
		if err := dec.Decode(&l); err == io.EOF {
			return last
		} else if err != nil || l.Time.IsZero() {
			b.t.Fatalf("log: %v, %+v", err, l)
		}
		if l.Level == "error" {
			last = l.Msg
		}
	}
}

// TestGoRunc takes a container through the shim's calls.
func TestGoRunc(t *testing.T) {
	b := newBench(t, "stdin")
	b.spec.Annotations = map[string]string{"a": "b"}
	b.write()
	ctx, r := t.Context(), b.client()
	pio, err := runc.NewPipeIO(0, 0)
	must(t, err)
	defer pio.Close()
	pidFile := filepath.Join(b.bundle, "init.pid")
	must(t, r.Create(ctx, b.id, b.bundle, &runc.CreateOpts{IO: pio, PidFile: pidFile}))
	pid, err := runc.ReadPidFile(pidFile)
	must(t, err)
	c, err := r.State(ctx, b.id)
	must(t, err)
	if c.Status != "created" || c.Pid != pid || c.ID != b.id || c.Bundle != b.bundle || c.Rootfs != filepath.Join(b.bundle, "rootfs") || c.Annotations["a"] != "b" || time.Since(c.Created) > time.Minute {
		t.Errorf("State = %+v, want created, process %d", c, pid)
	}
	if _, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe"); err != nil {
		t.Error(err)
	}
	must(t, r.Start(ctx, b.id))
	if exe, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe"); err != nil || filepath.Base(exe) != "inside" {
		t.Errorf("after start process %d is %s, %v", pid, exe, err)
	}
	if c, err = r.State(ctx, b.id); err != nil || c.Status != "running" || c.Pid != pid {
		t.Errorf("State = %+v, %v, want running", c, err)
	}
	if err := r.Start(ctx, b.id); err == nil || !strings.Contains(b.lastError(), "cannot start a container in the running state") {
		t.Errorf("a second Start = %v, %q", err, b.lastError())
	}
	list, err := r.List(ctx)
	if err != nil || len(list) != 1 || list[0].ID != b.id {
		t.Errorf("List = %v, %v", list, err)
	}
	pids, err := r.Ps(ctx, b.id)
	if err != nil || !slices.Equal(pids, []int{pid}) {
		t.Errorf("Ps = %v, %v, want %d", pids, err, pid)
	}
	if _, err := exec.LookPath("ps"); err == nil {
		top, err := r.Top(ctx, b.id, "-eo pid,comm")
		if err == nil {
			t.Errorf("Top with one word for two = %v", top)
		}
		if top, err = r.Top(ctx, b.id, "-ef"); err != nil || len(top.Processes) != 1 {
			t.Errorf("Top = %+v, %v", top, err)
		}
	}
	st, err := b.stats()
	if err != nil || st.Memory.Usage.Usage == 0 && st.Memory.Usage.Limit != 0 || st.Pids.Current == 0 {
		t.Errorf("Stats = %+v, %v", st, err)
	}
	must(t, r.Pause(ctx, b.id))
	if c, err = r.State(ctx, b.id); err != nil || c.Status != "paused" {
		t.Errorf("State = %+v, %v, want paused", c, err)
	}
	must(t, r.Resume(ctx, b.id))
	n := int64(77)
	must(t, r.Update(ctx, b.id, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &n}}))
	if st, err = b.stats(); err != nil || st.Pids.Limit != 77 {
		t.Errorf("Stats after Update = %+v, %v, want a limit of 77", st, err)
	}
	if _, err := pio.Stdin().Write([]byte("through\n")); err != nil {
		t.Error(err)
	}
	line := make([]byte, 8)
	if _, err := io.ReadFull(pio.Stdout(), line); err != nil || string(line) != "through\n" {
		t.Errorf("the container wrote %q, %v", line, err)
	}
	b.testExec(ctx, r)
	if err := r.Delete(ctx, b.id, nil); err == nil {
		t.Error("Delete of a running container worked")
	}
	must(t, r.Kill(ctx, b.id, int(unix.SIGKILL), &runc.KillOpts{All: true}))
	waitPid(t, pid)
	if err := r.Kill(ctx, b.id, int(unix.SIGKILL), nil); err == nil || !strings.Contains(err.Error(), "container not running") {
		t.Errorf("Kill after the end = %v, want the shim's words", err)
	}
	must(t, r.Delete(ctx, b.id, nil))
	if err := r.Delete(ctx, b.id, nil); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("Delete again = %v, want the shim's words", err)
	}
	must(t, r.Delete(ctx, b.id, &runc.DeleteOpts{Force: true}))
}

// stats is go-runc's Stats without its race: it closes the pipe that it reads when the program ends.
func (b *bench) stats() (*runc.Stats, error) {
	var e runc.Event
	err := json.Unmarshal([]byte(b.ok("events", "--stats", b.id)), &e)
	return e.Stats, err
}

func (b *bench) testExec(ctx context.Context, r *runc.Runc) {
	t := b.t
	p := *b.spec.Process
	p.Args = []string{"/inside", "echo", "one", ";", "exit", "7"}
	eio, err := runc.NewPipeIO(0, 0)
	must(t, err)
	defer eio.Close()
	pidFile := filepath.Join(b.bundle, "exec.pid")
	must(t, r.Exec(ctx, b.id, p, &runc.ExecOpts{IO: eio, PidFile: pidFile, Detach: true}))
	if out, err := io.ReadAll(eio.Stdout()); err != nil || string(out) != "one\n" {
		t.Errorf("Exec wrote %q, %v", out, err)
	}
	if _, err := runc.ReadPidFile(pidFile); err != nil {
		t.Error(err)
	}
	err = r.Exec(ctx, b.id, p, nil)
	if e := new(runc.ExitError); err == nil || !strings.Contains(err.Error(), "exit status 7") {
		t.Errorf("Exec = %v, want the program's status %v", err, e)
	}
	p.Args = []string{"/nothing"}
	if err := r.Exec(ctx, b.id, p, nil); err == nil || !strings.Contains(b.lastError(), "exec /nothing: not found") {
		t.Errorf("Exec of nothing = %v, %q", err, b.lastError())
	}
}

// TestGoRuncRun: run, features, version, and what is refused.
func TestGoRuncRun(t *testing.T) {
	b := newBench(t, "exit", "42")
	b.write()
	ctx, r := t.Context(), b.client()
	status, err := r.Run(ctx, b.id, b.bundle, nil)
	if status != 42 {
		t.Errorf("Run = %d, %v, want 42", status, err)
	}
	if list, err := r.List(ctx); err != nil || len(list) != 0 {
		t.Errorf("List after Run = %v, %v", list, err)
	}
	f, err := r.Features(ctx)
	if err != nil || f.Linux == nil || !slices.Contains(f.Linux.Namespaces, "user") || !slices.Contains(f.MountOptions, "rro") || !*f.Linux.MountExtensions.IDMap.Enabled {
		t.Errorf("Features = %+v, %v", f, err)
	}
	if _, err := r.Version(ctx); err != nil {
		t.Error(err)
	}
	if err := r.Checkpoint(ctx, b.id, nil); err == nil || !strings.Contains(b.lastError(), "checkpoint: not supported") {
		t.Errorf("Checkpoint = %v", err)
	}
	r.SystemdCgroup = true
	if err := r.Create(ctx, b.id, b.bundle, nil); err == nil || !strings.Contains(err.Error()+b.lastError(), "want SLICE:PREFIX:NAME") {
		t.Errorf("with --systemd-cgroup: %v", err)
	}
}

// TestGoRuncConsole: terminals through sockets, of the container and of an exec.
func TestGoRuncConsole(t *testing.T) {
	b := newBench(t, "readline", ";", "tty", ";", "sleep")
	b.spec.Process.Terminal, b.spec.Process.ConsoleSize = true, &specs.Box{Height: 20, Width: 70}
	b.write()
	ctx, r := t.Context(), b.client()
	socket, err := runc.NewTempConsoleSocket()
	must(t, err)
	defer socket.Close()
	must(t, r.Create(ctx, b.id, b.bundle, &runc.CreateOpts{ConsoleSocket: socket}))
	tty, err := socket.ReceiveMaster()
	must(t, err)
	defer tty.Close()
	must(t, r.Start(ctx, b.id))
	_, err = tty.Write([]byte("x\n"))
	must(t, err)
	readUntil(t, tty, "/dev/pts/0 20 70 true")

	p := *b.spec.Process
	p.Args = []string{"/inside", "tty", ";", "sleep"}
	second, err := runc.NewTempConsoleSocket()
	must(t, err)
	defer second.Close()
	must(t, r.Exec(ctx, b.id, p, &runc.ExecOpts{ConsoleSocket: second, Detach: true}))
	tty2, err := second.ReceiveMaster()
	must(t, err)
	defer tty2.Close()
	readUntil(t, tty2, "/dev/pts/1 20 70 true")
}

func readUntil(t *testing.T, r io.Reader, want string) {
	t.Helper()
	var all bytes.Buffer
	for buf := make([]byte, 1024); !strings.Contains(all.String(), want); {
		n, err := r.Read(buf)
		all.Write(buf[:n])
		if err != nil {
			t.Fatalf("the terminal ended with %v after %q, without %q", err, all.String(), want)
		}
	}
}

// events may run for as long as its container, and holds no more for that.
func TestEventsForLong(t *testing.T) {
	b := newBench(t, "trap")
	b.create()
	b.ok("start", b.id)
	cmd := b.cmd("events", "--interval", "1ms", b.id)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for i := range 100 {
		if !lines.Scan() || !strings.Contains(lines.Text(), `"type":"stats"`) {
			t.Fatalf("line %d: %q, %v", i, lines.Text(), lines.Err())
		}
	}
	open, err := os.ReadDir("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/fd")
	if err != nil || len(open) > 30 {
		t.Errorf("%d descriptors are open, %v", len(open), err)
	}
	b.end()
	for lines.Scan() {
	}
	must(t, cmd.Wait())
}
