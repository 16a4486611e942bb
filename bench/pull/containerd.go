package main

import (
	"context"
	"os"
	"strings"

	"github.com/snapfs/snapfs/bench/containerd"
)

// findContainerd makes sure that there are containerd and ctr, and that the
// snapshotters that were asked for can work.
func (c *config) findContainerd(ctx context.Context) error {
	os.Setenv("PATH", c.path())
	if strings.Contains(c.systems, "erofs") {
		if err := containerd.CheckErofs(ctx); err != nil {
			return err
		}
	}
	return containerd.Find(ctx, c.build)
}

// startContainerd starts a containerd without state.
func (c *config) startContainerd(ctx context.Context, work, name string) (*daemon, error) {
	file, socket, err := containerd.Config(work, containerd.Settings[name])
	if err != nil {
		return nil, err
	}
	d, err := c.spawn(work, []string{"containerd", "-l", "warn", "-c", file}, socket)
	if err != nil {
		return d, err
	}
	ctr := []string{"ctr", "-a", socket}
	if err := c.command(ctx, append(ctr, "version")); err != nil {
		return d, err
	}
	snapshotter, _, _ := strings.Cut(name, "-")
	d.pull = func(ctx context.Context, ref string) error {
		return c.command(ctx, append(ctr, "images", "pull", "--plain-http", "--snapshotter", snapshotter, ref))
	}
	return d, nil
}
