package main

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/bench/containerd"
)

// A client gives commands to the system on a node.
type client interface {
	// pull makes an image ready to be started; nothing if start does that.
	pull(ctx context.Context, ref string) error
	// start starts a container. It does not wait.
	start(name, ref string, t task) (*started, error)
	// pid is that of a process of the container, once there is one.
	pid(ctx context.Context, name string) (int, error)
	// times are when the image could be used and when the container's process
	// was made, of a container that was started by start. A zero time is not known.
	times(ctx context.Context, name string) (usable, running time.Time, err error)
	// stop ends and removes a container.
	stop(ctx context.Context, name string, s *started) error
}

// ctrClient is containerd's ctr.
type ctrClient struct {
	n           *node
	socket      string
	snapshotter string
}

func startContainerd(ctx context.Context, n *node, snapshotter, settings string) (*ctrClient, error) {
	file, socket, err := containerd.Config(n.dir, settings)
	if err != nil {
		return nil, err
	}
	if err := n.spawn(ctx, socket, "containerd", "-l", "warn", "-c", file); err != nil {
		return nil, err
	}
	c := &ctrClient{n, socket, snapshotter}
	_, err = n.output(ctx, c.ctr("version")...)
	return c, err
}

func (c *ctrClient) ctr(args ...string) []string {
	return append([]string{"ctr", "-a", c.socket}, args...)
}

func (c *ctrClient) pull(ctx context.Context, ref string) error {
	_, err := c.n.output(ctx, c.ctr("images", "pull", "--plain-http", "--snapshotter", c.snapshotter, ref)...)
	return err
}

func (c *ctrClient) pidFile(name string) string { return filepath.Join(c.n.dir, name+".pid") }

func (c *ctrClient) start(name, ref string, t task) (*started, error) {
	argv := c.ctr("run", "--rm", "--snapshotter", c.snapshotter, "--cgroup", c.n.cgroup+"/"+name, "--pid-file", c.pidFile(name), ref, name)
	return c.n.begin(t.Ready, append(argv, t.Args...)...)
}

func (c *ctrClient) pid(_ context.Context, name string) (int, error) {
	b, err := os.ReadFile(c.pidFile(name))
	if err != nil {
		return 0, err
	}
	if len(b) == 0 {
		return 0, errNoProcess
	}
	return strconv.Atoi(string(b))
}

// times: ctr writes the file with the process's number before it lets it go.
func (c *ctrClient) times(_ context.Context, name string) (usable, running time.Time, err error) {
	fi, err := os.Stat(c.pidFile(name))
	if err != nil {
		return usable, running, err
	}
	return usable, fi.ModTime(), nil
}

func (c *ctrClient) stop(ctx context.Context, name string, s *started) error {
	for {
		select {
		case <-s.done:
			return nil
		default:
		}
		_, err := c.n.output(ctx, c.ctr("task", "kill", "-s", "SIGKILL", name)...)
		if err != nil && strings.Contains(err.Error(), "not found") {
			err = nil // it is ending
		}
		select {
		case <-s.done:
			return nil
		case <-ctx.Done():
			unix.Kill(-s.cmd.Process.Pid, unix.SIGKILL)
			<-s.done
			return err
		case <-time.After(500 * time.Millisecond):
		}
	}
}
