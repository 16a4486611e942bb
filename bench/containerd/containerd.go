// Package containerd has what measurements against containerd share: how it is
// built, and how it is configured at its best.
package containerd

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Version is the containerd that is built.
const Version = "v2.4.2"

// base is the configuration that all share. Plugins that would do work of
// their own, or that a machine may lack, are off.
const base = `
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

// Settings are what each system adds. The erofs options are those that its
// documentation (docs/snapshotters/erofs.md) asks for.
var Settings = map[string]string{
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

// Config writes a configuration for state in work, with settings added in which
// {work} stands for that directory. It returns the file and containerd's socket.
func Config(work, settings string) (file, socket string, err error) {
	file = filepath.Join(work, "config.toml")
	text := strings.ReplaceAll(base+settings, "{work}", work)
	return file, filepath.Join(work, "c.sock"), os.WriteFile(file, []byte(text), 0o600)
}

// CheckErofs tells whether mkfs.erofs in PATH is one that containerd can use.
func CheckErofs(ctx context.Context) error {
	out, _ := exec.CommandContext(ctx, "mkfs.erofs", "-V").CombinedOutput() // 1.5 knows no -V
	if strings.HasPrefix(string(out), "mkfs.erofs (erofs-utils) 1.") {
		return nil
	}
	return fmt.Errorf("mkfs.erofs is older than 1.8, or there is none: put a newer one into -bin")
}

// Build builds containerd's programs (as cmd/NAME in its repository) from its
// module into dir/bin, unless PATH has all of them.
func Build(ctx context.Context, dir string, programs ...string) error {
	if !slices.ContainsFunc(programs, func(p string) bool {
		_, err := exec.LookPath(p)
		return err != nil
	}) {
		return nil
	}
	fmt.Fprintf(os.Stderr, "building containerd %s in %s\n", Version, dir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	const path = "github.com/containerd/containerd/v2"
	mod := "module scratch\n\ngo 1.26\n\nrequire " + path + " " + Version + "\n"
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte(mod), 0o644); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-mod=mod", "-tags", "netgo osusergo no_btrfs no_devmapper no_zfs", "-o", "bin/")
	for _, p := range programs {
		cmd.Args = append(cmd.Args, path+"/cmd/"+p)
	}
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	return cmd.Run()
}
