package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// containerdConfig is the part that all share. Plugins that would do work of
// their own, or that this machine may lack, are off.
const containerdConfig = `
version = 3
root = "{work}/root"
state = "{work}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images",
  "io.containerd.cri.v1.runtime", "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.tracing"]
[grpc]
  address = "{work}/c.sock"
[ttrpc]
  address = "{work}/t.sock"
[plugins."io.containerd.shim.v1.manager"]
  socket_dir = "{work}/s"
`

// containerdConfigs are what each system adds. The erofs options are those that
// its documentation (docs/snapshotters/erofs.md) asks for.
var containerdConfigs = map[string]string{
	"overlayfs": "\n",
	"overlayfs-par": `
[plugins."io.containerd.transfer.v1.local"]
  max_concurrent_unpacks = 4
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux/amd64"
    snapshotter = "overlayfs"
`,
	"erofs": `
[plugins."io.containerd.service.v1.diff-service"]
  default = ["erofs", "walking"]
[plugins."io.containerd.differ.v1.erofs"]
  mkfs_options = ["-T0", "--mkfs-time", "--sort=none"]
[plugins."io.containerd.transfer.v1.local"]
  max_concurrent_unpacks = 4
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux/amd64"
    snapshotter = "erofs"
    differ = "erofs"
`,
}

const scratchModule = `module scratch

go 1.26

require github.com/containerd/containerd/v2 v2.4.2
`

// findContainerd makes sure that there are containerd and ctr, and that the
// snapshotters that were asked for can work.
func (c *config) findContainerd(ctx context.Context) error {
	os.Setenv("PATH", c.path())
	if strings.Contains(c.systems, "erofs") {
		out, _ := exec.CommandContext(ctx, "mkfs.erofs", "-V").CombinedOutput() // 1.5 knows no -V
		if !strings.HasPrefix(string(out), "mkfs.erofs (erofs-utils) 1.") {
			return fmt.Errorf("mkfs.erofs is older than 1.8: put a newer one into -bin, or leave erofs out of -systems")
		}
	}
	if _, err := exec.LookPath("containerd"); err == nil {
		return nil
	}
	fmt.Fprintln(os.Stderr, "building containerd 2.4.2 in", c.build)
	if err := os.MkdirAll(c.build, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(c.build, "go.mod"), []byte(scratchModule), 0o644); err != nil {
		return err
	}
	const cmds = "github.com/containerd/containerd/v2/cmd/"
	cmd := exec.CommandContext(ctx, "go", "build", "-mod=mod", "-tags", "netgo osusergo no_btrfs no_devmapper no_zfs",
		"-o", "bin/", cmds+"containerd", cmds+"ctr")
	cmd.Dir = c.build
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	return cmd.Run()
}

// startContainerd starts a containerd without state.
func (c *config) startContainerd(ctx context.Context, work, name string) (*daemon, error) {
	text := strings.ReplaceAll(containerdConfig+containerdConfigs[name], "{work}", work)
	file := filepath.Join(work, "config.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, err
	}
	socket := filepath.Join(work, "c.sock")
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
