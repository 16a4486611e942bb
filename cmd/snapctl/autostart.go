package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/snapfs/snapfs/internal/control"
)

// startTimeout bounds the wait for a daemon to answer: it serves first and
// tidies up later, so that this is many times what it takes.
const startTimeout = 20 * time.Second

// autostart starts a daemon because none answers at socket, as why says.
func (env *Env) autostart(ctx context.Context, socket string, why error) error {
	if env.NoAutostart {
		return fmt.Errorf("no daemon answers at %s (%w), and --no-autostart forbids to start one", socket, errors.Unwrap(syscallError(why)))
	}
	if filepath.Base(socket) != socketName {
		return fmt.Errorf("no daemon answers at %s, and none can be started there: its socket is always called %s", socket, socketName)
	}
	run := filepath.Dir(socket)
	if run != defaultRun && env.Root == "" {
		return fmt.Errorf("no daemon answers at %s; start snapd, or say with --root where a new one is to keep its state", socket)
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("no daemon answers at %s, and only root can start one", socket)
	}
	snapd, err := findDaemon()
	if err != nil {
		return fmt.Errorf("no daemon answers at %s: %w", socket, err)
	}
	fmt.Fprintf(env.Stderr, "snapctl: no daemon answers at %s; starting %s\n", socket, snapd)
	return env.startDaemon(ctx, snapd, run, socket)
}

// syscallError makes sure that there is something to unwrap.
func syscallError(err error) error {
	var e *os.SyscallError
	if errors.As(err, &e) {
		return e
	}
	return fmt.Errorf("%w", err)
}

// findDaemon looks for snapd beside snapctl, then in PATH.
func findDaemon() (string, error) {
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "snapd")
		if fi, err := os.Stat(beside); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return beside, nil
		}
	}
	path, err := exec.LookPath("snapd")
	if err != nil {
		return "", errors.New("snapd is neither beside snapctl nor in PATH")
	}
	return filepath.Abs(path)
}

// startDaemon starts snapd detached and waits until it answers. What it has to
// say goes to RUN/snapd.log.
func (env *Env) startDaemon(ctx context.Context, snapd, run, socket string) error {
	if err := os.MkdirAll(run, 0o700); err != nil {
		return err
	}
	name := filepath.Join(run, "snapd.log")
	log, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	fi, err := log.Stat()
	if err != nil {
		return err
	}
	cmd := exec.Command(snapd, "--run", run)
	if env.Root != "" {
		cmd.Args = append(cmd.Args, "--root", env.Root)
	}
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	dead := make(chan error, 1)
	go func() { dead <- cmd.Wait() }() // ends with the daemon, or with us
	if err := waitForDaemon(ctx, socket, dead); err != nil {
		if said := lastLine(name, fi.Size()); said != "" {
			return fmt.Errorf("%w: %s", err, said)
		}
		return fmt.Errorf("%w; see %s", err, name)
	}
	return nil
}

func waitForDaemon(ctx context.Context, socket string, dead <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		_, err := control.Call(ctx, socket, control.OpVersion, nil, nil, nil)
		if err == nil {
			return nil
		}
		select {
		case <-dead:
			// Another one may have been started at the same time.
			if _, err := control.Call(ctx, socket, control.OpVersion, nil, nil, nil); err == nil {
				return nil
			}
			return errors.New("the daemon ended at once")
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("the daemon does not answer at %s: %w", socket, err)
		}
	}
}

// lastLine returns the last line of the file at path beyond off.
func lastLine(path string, off int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, 64<<10)
	n, _ := f.ReadAt(b, off)
	text := strings.TrimSpace(string(b[:n]))
	return text[strings.LastIndexByte(text, '\n')+1:]
}
