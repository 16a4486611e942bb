// Package containerd has what measurements against containerd share: which it
// is, and how it is configured at its best.
package containerd

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/snapfs/snapfs/internal/peers"
)

// Peer is the containerd that is measured.
var Peer = peers.Containerd24

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

// Cache is where peers are kept by default.
func Cache() string {
	dir, err := peers.Cache()
	if err != nil { // no home
		return filepath.Join(os.TempDir(), "snapfs-peers")
	}
	return dir
}

// Find sees to it that PATH has containerd, ctr and its shim: unless it has them
// all, they are found in, or built into, the cache, and its folder is added to
// the end of PATH.
func Find(ctx context.Context, cache string) error {
	if !slices.ContainsFunc(Peer.Names(), func(p string) bool {
		_, err := exec.LookPath(p)
		return err != nil
	}) {
		return nil
	}
	dir, err := Peer.Find(ctx, cache, os.Stderr)
	if err != nil {
		return err
	}
	return os.Setenv("PATH", os.Getenv("PATH")+string(os.PathListSeparator)+dir)
}
