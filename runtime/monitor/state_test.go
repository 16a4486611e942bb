package monitor

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestParseSignal(t *testing.T) {
	for text, want := range map[string]unix.Signal{
		"TERM": 15, "SIGTERM": 15, "sigint": 2, "9": 9, "64": 64, "SIGRTMIN": 34, "rtmin+3": 37, "SIGRTMAX-1": 63, "RTMAX": 64,
		"": 0, "0": 0, "65": 0, "-1": 0, "SIGNOPE": 0, "RTMIN-1": 0, "RTMAX+1": 0, "RTMIN+": 0, "RTMIN+31": 0, "RTMINx3": 0, "RTMIN++3": 0,
	} {
		n, err := ParseSignal(text)
		if n != want || (err == nil) != (want != 0) {
			t.Errorf("ParseSignal(%q) = %d, %v, want %d", text, n, err, want)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	for name, text := range map[string]string{
		"empty": "", "not JSON": "{", "no ID": `{"Spec":{"process":{}},"Socket":"/s"}`, "no spec": `{"ID":"a","Socket":"/s"}`,
		"no process": `{"ID":"a","Spec":{},"Socket":"/s"}`, "no socket": `{"ID":"a","Spec":{"process":{}}}`,
		"bad ready": `{"ID":"a","Spec":{"process":{}},"Socket":"/s","Ready":"port=0"}`, "bad health": `{"ID":"a","Spec":{"process":{}},"Socket":"/s","Health":{"Test":["x"]}}`,
		"bad signal": `{"ID":"a","Spec":{"process":{}},"Socket":"/s","StopSignal":"SIGNOPE"}`,
	} {
		if c, err := decodeConfig([]byte(text)); err == nil {
			t.Errorf("%s: decodeConfig = %+v", name, c)
		}
	}
	if _, err := LoadConfig(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("LoadConfig of nothing: %v", err)
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"ID":"a","Spec":{"process":{"args":["x"]}},"Socket":"/s"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := decodeConfig(b); err == nil && (c.ID == "" || c.Spec.Process == nil) {
			t.Errorf("decodeConfig(%q) = %+v", b, c)
		}
	})
}

func FuzzState(f *testing.F) {
	f.Add([]byte(`{"Status":"exited","ExitCode":3}`))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		switch s := decodeState(b); s.Status {
		case StatusCreated, StatusRunning, StatusExited, StatusDead:
		default:
			t.Errorf("decodeState(%q) = %+v", b, s)
		}
	})
}

func TestDamagedState(t *testing.T) {
	dir := t.TempDir()
	if s, err := LoadState(dir); err != nil || s.Status != StatusCreated {
		t.Errorf("LoadState of nothing = %+v, %v", s, err)
	}
	for _, text := range []string{"", "\x00\x00", `{"Status":"`, `{"Status":"merry"}`} {
		if err := os.WriteFile(filepath.Join(dir, StateFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := LoadState(dir); err != nil || s.Status != StatusDead || s.Error == "" || s.ExitCode != 255 {
			t.Errorf("LoadState of %q = %+v, %v", text, s, err)
		}
	}
}

// A container whose monitor was killed is ended, but only if its pid still is its own.
func TestRecover(t *testing.T) {
	for name, ours := range map[string]bool{"its own": true, "used again": false} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("sleep", "1000")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Wait()
			defer cmd.Process.Kill()
			start, err := startTime(cmd.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			if !ours {
				start--
			}
			dir := t.TempDir()
			if err := (State{Status: StatusRunning, Pid: cmd.Process.Pid, PidStart: start, Started: now()}).save(dir, true); err != nil {
				t.Fatal(err)
			}
			s, err := Recover(dir)
			if err != nil || s.Status != StatusDead || s.Error == "" {
				t.Errorf("Recover = %+v, %v", s, err)
			}
			if again, err := LoadState(dir); err != nil || again != s {
				t.Errorf("recorded: %+v, %v", again, err)
			}
			if !ours {
				if err := cmd.Process.Signal(unix.Signal(0)); err != nil {
					t.Errorf("somebody else's process was killed: %v", err)
				}
				return
			}
			if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(interface{ Signaled() bool }).Signaled() == false {
				t.Errorf("the process ended by %v", err)
			}
		})
	}
}

func TestRecoverLeavesTheLivingAlone(t *testing.T) {
	h := box(t)
	if s, err := Recover(h.dir); err != nil || s.Status != StatusRunning {
		t.Errorf("Recover = %+v, %v", s, err)
	}
}

func TestSaveLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	c := &Config{ID: "a", Socket: "/s", Spec: &specs.Spec{Process: &specs.Process{}}}
	for range 3 {
		if err := c.Save(dir); err != nil {
			t.Fatal(err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	if err := c.Save(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Save into nothing: %v", err)
	}
}

// TestFullDisk: how a container ended is recorded although there is no room for a new file.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts a small file system")
	}
	mnt := t.TempDir()
	if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mnt, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	h := prepare(t, sh("read x; exit 3"), func(c *Config) { c.OpenStdin = true })
	full := filepath.Join(mnt, "c")
	if err := errors.Join(os.Mkdir(full, 0o700), h.cfg.Save(full)); err != nil {
		t.Fatal(err)
	}
	h.dir = full
	h.start()
	fill, err := os.Create(filepath.Join(mnt, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	defer fill.Close()
	for err == nil {
		_, err = fill.Write(make([]byte, 4096))
	}
	h.call(OpStart, nil, nil)
	s := newStreams(t, true)
	c := h.attach(AttachArgs{CloseStdin: true}, s)
	if st := h.state(); st.Status != StatusRunning || st.Pid == 0 {
		t.Errorf("state = %+v, want it running", st)
	}
	s.in.Close()
	if exit, err := c.Wait(t.Context(), nil); err != nil || exit.Code != 3 {
		t.Errorf("Wait = %+v, %v", exit, err)
	}
	h.end()
	if st := h.state(); st.Status != StatusExited || st.ExitCode != 3 {
		t.Errorf("state = %+v, want exit status 3", st)
	}
}
