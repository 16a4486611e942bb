package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// dockerImage is what the root file system is called there.
const dockerImage = "bench"

// dockerPrograms are what it takes.
var dockerPrograms = []string{"dockerd", "docker", "containerd", "runc", "tar"}

// A docker is a Docker engine with everything of its own: state below dir, a
// network namespace, and pid and mount namespaces that end with it.
type docker struct {
	dir string
	cmd *exec.Cmd
}

// startDocker starts an engine and gives it the image.
func startDocker(ctx context.Context, dir, rootfs string) (_ *docker, err error) {
	for _, d := range []string{"", "etc", "etc.work", "config"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	d := &docker{dir: dir}
	if d.cmd, err = self(verbDocker, dir, path.Join(cgroupParent, "docker")); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET, Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.stop())
			text, _ := os.ReadFile(log.Name())
			err = fmt.Errorf("dockerd: %w: %s", err, text[max(0, len(text)-2000):])
		}
	}()
	if err := d.await(ctx); err != nil {
		return nil, err
	}
	return d, d.load(ctx, rootfs)
}

// await waits until the engine answers.
func (d *docker) await(ctx context.Context) error {
	for end := time.Now().Add(time.Minute); ; {
		err := d.command(ctx, "version").Run()
		if err == nil {
			return nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return fmt.Errorf("it does not answer: %w", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// load makes an image of one layer of a directory.
func (d *docker) load(ctx context.Context, rootfs string) error {
	tar := exec.CommandContext(ctx, "tar", "-C", rootfs, "-c", ".")
	load := d.command(ctx, "import", "-", dockerImage)
	var out, complaint bytes.Buffer
	load.Stdout, load.Stderr, tar.Stderr = &out, &out, &complaint
	pipe, err := tar.StdoutPipe()
	if err != nil {
		return err
	}
	load.Stdin = pipe
	if err := tar.Start(); err != nil {
		return err
	}
	err = load.Run()
	pipe.Close()
	if err = errors.Join(err, tar.Wait()); err != nil {
		return fmt.Errorf("docker import: %w: %s%s", err, out.Bytes(), complaint.Bytes())
	}
	return nil
}

func (d *docker) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "docker", append([]string{"--host", d.socket()}, args...)...)
	cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+filepath.Join(d.dir, "config"))
	return cmd
}

func (d *docker) socket() string { return "unix://" + filepath.Join(d.dir, "docker.sock") }

// run is docker run from start to end.
func (d *docker) run(command []string) (time.Duration, error) {
	line := append([]string{"docker", "--config", filepath.Join(d.dir, "config"), "--host", d.socket(), "run", "--rm", dockerImage}, command...)
	return one(line...).run()
}

func (d *docker) stop() error {
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	err := d.cmd.Wait()
	if e, ok := errors.AsType[*exec.ExitError](err); ok && e.Sys().(syscall.WaitStatus).Signaled() {
		return nil // the last process of the namespace took it along
	}
	return err
}

// serveDocker is the first process of the namespaces. It hides what the engine
// would write to outside of dir, starts it, and reaps.
func serveDocker(dir, cgroup string) error {
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGTERM, os.Interrupt)
	etc := fmt.Sprintf("lowerdir=/etc,upperdir=%[1]s/etc,workdir=%[1]s/etc.work", dir)
	for _, m := range []struct{ kind, target, data string }{
		{"proc", "/proc", ""}, {"tmpfs", "/run", "mode=755"}, {"tmpfs", "/opt", "mode=755"}, {"overlay", "/etc", etc},
	} {
		if err := unix.Mount(m.kind, m.target, m.kind, 0, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.kind, m.target, err)
		}
	}
	engine := exec.Command("dockerd", dockerdFlags(dir, cgroup)...)
	engine.Stdout, engine.Stderr = os.Stdout, os.Stderr
	if err := engine.Start(); err != nil {
		return err
	}
	stopped := make(chan struct{})
	defer close(stopped)
	go func() {
		select {
		case <-terminate:
			_ = engine.Process.Signal(syscall.SIGTERM)
		case <-stopped:
		}
	}()
	// Shims end up as children of the first process.
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("wait: %w", err)
		case pid == engine.Process.Pid && status.ExitStatus() != 0:
			return fmt.Errorf("dockerd: exit status %d", status.ExitStatus())
		case pid == engine.Process.Pid:
			return nil
		}
	}
}

// dockerdFlags keep everything below a directory; the score is as it is, for who may not lower it.
func dockerdFlags(dir, cgroup string) []string {
	flags := []string{
		"--host", "unix://" + filepath.Join(dir, "docker.sock"), "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", filepath.Join(dir, "pid"), "--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", cgroup,
		"--oom-score-adjust", "0", "--log-level", "warn",
	}
	if _, err := exec.LookPath("iptables"); err != nil {
		flags = append(flags, "--iptables=false")
	}
	return flags
}
