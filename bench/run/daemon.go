package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A daemon is a snapd with state of its own.
type daemon struct {
	bin, dir string
	cmd      *exec.Cmd
}

// startDaemon starts one; lines are added to its configuration.
func startDaemon(ctx context.Context, bin, dir string, lines ...string) (_ *daemon, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, "snapd.toml")
	if err := os.WriteFile(conf, fmt.Appendf(nil, "cgroup_parent = %q\n%s\n", cgroupParent, strings.Join(lines, "\n")), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "snapd.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	d := &daemon{bin: bin, dir: dir}
	d.cmd = exec.Command(filepath.Join(bin, "snapd"), "--config", conf, "--root", filepath.Join(dir, "root"), "--run", filepath.Join(dir, "run"))
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is ours to pass on
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	for range 1000 {
		if err = d.snapctl(ctx, "version"); err == nil {
			return d, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	text, _ := os.ReadFile(log.Name())
	return nil, errors.Join(fmt.Errorf("snapd does not answer: %w: %s", err, bytes.TrimSpace(text)), d.stop())
}

func (d *daemon) stop() error {
	d.cmd.Process.Signal(syscall.SIGTERM)
	return d.cmd.Wait()
}

func (d *daemon) command(ctx context.Context, args ...string) *exec.Cmd {
	host := "unix://" + filepath.Join(d.dir, "run", "snapd.sock")
	return exec.CommandContext(ctx, filepath.Join(d.bin, "snapctl"), append([]string{"--no-autostart", "--host", host}, args...)...)
}

func (d *daemon) snapctl(ctx context.Context, args ...string) error {
	_, err := d.output(ctx, args...)
	return err
}

func (d *daemon) output(ctx context.Context, args ...string) (string, error) {
	var complaint bytes.Buffer
	cmd := d.command(ctx, args...)
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("snapctl %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(complaint.Bytes()))
	}
	return strings.TrimSpace(string(out)), err
}
