package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/snapfs/snapfs/bench/containerd"
)

// The forms of an image, each a repository FORM/IMAGE of the registry.
const (
	formPlain   = "plain"    // as it is
	formEsgz    = "esgz"     // eStargz (ctr-remote images convert)
	formEsgzOpt = "esgz-opt" // eStargz, optimized for the task (ctr-remote images optimize)
	formSoci    = "soci"     // with a SOCI index (soci convert)
	formIndex   = "index"    // as it is, and our index published
	formProfile = "profile"  // the same, with a boot profile of the task and its bundle
)

// A system is a way to start containers.
type system struct {
	Name  string
	About string // what it is, for the report
	form  string
	warm  bool     // measured are only starts of an image that is local
	needs []string // programs
	check func(context.Context) error
	up    func(ctx context.Context, b *bench, n *node, registry string) (client, error)
}

var systems = []*system{
	{Name: "snapfs-nothing", About: "snapfs, an ordinary image that nobody knows", form: formPlain, up: snapd("")},
	{Name: "snapfs-index", About: "snapfs, an ordinary image whose index another node has published", form: formIndex, up: snapd(trustAny)},
	{Name: "snapfs-profile", About: "snapfs, the same with the boot profile and bundle of a start", form: formProfile, up: snapd(trustAny)},
	{Name: "ctr-nothing", About: "snapfs under containerd, an ordinary image that nobody knows", form: formPlain, needs: ctrPrograms, up: snapshotter("")},
	{Name: "ctr-index", About: "snapfs under containerd, an ordinary image whose index another node has published", form: formIndex, needs: ctrPrograms, up: snapshotter(trustAny)},
	{Name: "ctr-profile", About: "snapfs under containerd, the same with the boot profile and bundle of a start", form: formProfile, needs: ctrPrograms, up: snapshotter(trustAny)},
	{Name: "snapfs-warm", About: "snapfs, the image local, started before", form: formPlain, warm: true, up: snapd("")},
	{Name: "snapfs-esgz", About: "snapfs, an eStargz image", form: formEsgz, needs: []string{"ctr-remote"}, up: snapd("")},
	{Name: "overlayfs", About: "containerd, overlayfs, one layer unpacked after another", form: formPlain, needs: ctrPrograms, up: ctr("overlayfs")},
	{Name: "overlayfs-par", About: "containerd, overlayfs, four layers unpacked at once", form: formPlain, needs: ctrPrograms, up: ctr("overlayfs-par")},
	{Name: "erofs", About: "containerd, EROFS layers made while unpacking, four at once", form: formPlain, needs: ctrPrograms, check: containerd.CheckErofs, up: ctr("erofs")},
	{Name: "stargz", About: "stargz-snapshotter, an eStargz image", form: formEsgz, needs: append([]string{"containerd-stargz-grpc", "ctr-remote"}, ctrPrograms...), up: stargz},
	{Name: "stargz-opt", About: "stargz-snapshotter, an eStargz image optimized for the task", form: formEsgzOpt, needs: append([]string{"containerd-stargz-grpc", "ctr-remote"}, ctrPrograms...), up: stargz},
	{Name: "soci", About: "SOCI snapshotter, the ordinary layers with a SOCI index", form: formSoci, needs: append([]string{"soci-snapshotter-grpc", "soci"}, ctrPrograms...), up: soci},
}

var ctrPrograms = []string{"containerd", "ctr", "containerd-shim-runc-v2", "runc"}

// trustAny is what a node is told that has to believe others' indexes.
const trustAny = "[index]\ntrust = \"any\"\n"

// chooseSystems returns the named systems in the table's order; all for none.
func chooseSystems(names []string) ([]*system, error) {
	for _, n := range names {
		if !slices.ContainsFunc(systems, func(s *system) bool { return s.Name == n }) {
			return nil, fmt.Errorf("no system %q; there are %s", n, strings.Join(systemNames(), ", "))
		}
	}
	var list []*system
	for _, s := range systems {
		if len(names) == 0 || slices.Contains(names, s.Name) {
			list = append(list, s)
		}
	}
	return list, nil
}

func systemNames() (names []string) {
	for _, s := range systems {
		names = append(names, s.Name)
	}
	return names
}

// isWarm tells whether of the named system only starts of a local image are measured.
func isWarm(name string) bool {
	i := slices.IndexFunc(systems, func(s *system) bool { return s.Name == name })
	return i >= 0 && systems[i].warm
}

// missing tells what this machine lacks for a system.
func (s *system) missing(ctx context.Context) error {
	for _, p := range s.needs {
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf("no %s in PATH or -bin", p)
		}
	}
	if s.check != nil {
		return s.check(ctx)
	}
	return nil
}

func snapd(settings string) func(context.Context, *bench, *node, string) (client, error) {
	return func(ctx context.Context, b *bench, n *node, _ string) (client, error) {
		return startSnapd(ctx, n, b.bin, settings)
	}
}

// ours is what containerd is told of snapd: what snapctl containerd config prints.
const ours = `
[proxy_plugins.snapfs]
  type = "snapshot"
  address = "{work}/run/containerd.sock"
  capabilities = ["rebase", "remap-ids"]
  [proxy_plugins.snapfs.exports]
    root = "{work}/root"
    enable_remote_snapshot_annotations = "true"
[plugins."io.containerd.transfer.v1.local"]
  max_concurrent_unpacks = 4
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux/amd64"
    snapshotter = "snapfs"
`

// snapshotter is snapd as containerd's snapshotter.
func snapshotter(settings string) func(context.Context, *bench, *node, string) (client, error) {
	return func(ctx context.Context, b *bench, n *node, _ string) (client, error) {
		if _, err := startSnapd(ctx, n, b.bin, settings); err != nil {
			return nil, err
		}
		return startContainerd(ctx, n, "snapfs", ours)
	}
}

func ctr(name string) func(context.Context, *bench, *node, string) (client, error) {
	return func(ctx context.Context, _ *bench, n *node, _ string) (client, error) {
		snapshotter, _, _ := strings.Cut(name, "-")
		return startContainerd(ctx, n, snapshotter, containerd.Settings[name])
	}
}

// proxied is what containerd is told of a snapshotter that is another program.
const proxied = `
[proxy_plugins.{name}]
  type = "snapshot"
  address = "{work}/{name}.sock"
  [proxy_plugins.{name}.exports]
    root = "{work}/{name}"
    enable_remote_snapshot_annotations = "true"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/amd64"
  snapshotter = "{name}"
`

// startProxied starts a snapshotter with a configuration, and containerd.
// A snapshotter may need containerd's socket, and containerd connects to a
// snapshotter when it is first used.
func startProxied(ctx context.Context, n *node, name, program, config string) (client, error) {
	file := filepath.Join(n.dir, name+".toml")
	if err := writeFile(file, config); err != nil {
		return nil, err
	}
	sock := filepath.Join(n.dir, name+".sock")
	if err := n.spawn(ctx, sock, program, "--address", sock, "--root", filepath.Join(n.dir, name), "--config", file, "--log-level", "warn"); err != nil {
		return nil, err
	}
	return startContainerd(ctx, n, name, strings.ReplaceAll(proxied, "{name}", name))
}

func stargz(ctx context.Context, _ *bench, n *node, registry string) (client, error) {
	return startProxied(ctx, n, "stargz", "containerd-stargz-grpc", strings.ReplaceAll(`
[[resolver.host."{registry}".mirrors]]
host = "{registry}"
insecure = true
`, "{registry}", registry))
}

func soci(ctx context.Context, _ *bench, n *node, registry string) (client, error) {
	return startProxied(ctx, n, "soci", "soci-snapshotter-grpc", strings.NewReplacer("{registry}", registry, "{work}", n.dir).Replace(`
[content_store]
type = "soci"
containerd_address = "{work}/c.sock"
[cri_keychain]
enable_keychain = false
[[resolver.host."{registry}".mirrors]]
host = "http://{registry}"
insecure = true
`))
}
