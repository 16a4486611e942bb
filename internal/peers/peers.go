// Package peers finds the programs of others that snapfs is tested and measured
// with: containerd in the versions that matter, and what speaks to it. What is
// not in a cache outside of the repository is built into it, from its module:
// nothing needs a release that somebody else has compiled.
package peers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A Peer is some programs of one module at one version.
type Peer struct {
	Name     string // of its folder in the cache, before @ and the version
	Module   string
	Version  string
	Tags     string   // of the build
	Programs []string // packages, relative to the module
	Tests    []string // packages that are made a program of by go test -c
	Cgo      bool     // it has C code, and wants a compiler
}

const (
	containerd = "github.com/containerd/containerd/v2"
	// Static, and without the snapshotters that want C libraries or do nothing here.
	containerdTags = "netgo osusergo no_btrfs no_devmapper no_zfs"
)

var containerdPrograms = []string{"cmd/containerd", "cmd/ctr", "cmd/containerd-shim-runc-v2"}

// The peers. Seconds are of an empty Go build cache on the two cores of CI.
var (
	// Containerd24 is the first to know staged snapshots. 62 s.
	Containerd24 = Peer{Name: "containerd", Module: containerd, Version: "v2.4.2", Tags: containerdTags, Programs: containerdPrograms}
	// Containerd23 is the newest that commits remote snapshots inside Prepare only. 40 s.
	Containerd23 = Peer{Name: "containerd", Module: containerd, Version: "v2.3.7", Tags: containerdTags, Programs: containerdPrograms}
	// Containerd22 is the newest of the branch before. 44 s.
	Containerd22 = Peer{Name: "containerd", Module: containerd, Version: "v2.2.9", Tags: containerdTags, Programs: containerdPrograms}
	// Crictl speaks to the CRI as kubelet does. 25 s.
	Crictl = Peer{Name: "crictl", Module: "sigs.k8s.io/cri-tools", Version: "v1.37.0", Programs: []string{"cmd/crictl"}}
	// Critest is Kubernetes' test of container runtimes. 10 s after crictl.
	Critest = Peer{Name: "critest", Module: "sigs.k8s.io/cri-tools", Version: "v1.37.0", Tests: []string{"cmd/critest"}}
	// Runc knows id-mapped mounts, which Debian 12's does not. 8 s.
	Runc = Peer{Name: "runc", Module: "github.com/opencontainers/runc", Version: "v1.5.2", Programs: []string{"."}, Cgo: true}
	// BuildKit builds images. 67 s.
	BuildKit = Peer{Name: "buildkit", Module: "github.com/moby/buildkit", Version: "v0.34.2", Programs: []string{"cmd/buildkitd", "cmd/buildctl"}}
	// Nerdctl is containerd's command line for people: the newest that builds
	// without a module which exists in its repository only. 45 s.
	Nerdctl = Peer{Name: "nerdctl", Module: "github.com/containerd/nerdctl/v2", Version: "v2.0.4", Programs: []string{"cmd/nerdctl"}}
)

// CNI is some of the plugins that most networks are made of. 18 s.
var CNI = Peer{Name: "cni", Module: "github.com/containernetworking/plugins", Version: "v1.10.0", Programs: []string{"plugins/main/bridge", "plugins/main/loopback", "plugins/ipam/host-local", "plugins/meta/portmap"}}

// All are the peers that there are.
var All = []Peer{Containerd24, Containerd23, Containerd22, Crictl, Critest, Runc, BuildKit, Nerdctl, CNI}

// Cache is the directory that peers are kept in: what the environment variable
// SNAPFS_PEERS names, or a folder of the user's cache.
func Cache() (string, error) {
	if dir := os.Getenv("SNAPFS_PEERS"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	return filepath.Join(dir, "snapfs-peers"), err
}

func (p Peer) String() string { return p.Name + "@" + p.Version }

// Names lists the programs.
func (p Peer) Names() (list []string) {
	for _, pkg := range append(p.Programs[:len(p.Programs):len(p.Programs)], p.Tests...) {
		list = append(list, path.Base(path.Join(p.Module, pkg)))
	}
	return list
}

// Find returns the directory below cache that has the peer's programs. Those that
// are missing are built there, once even if several processes ask, and log is
// told. It needs the go command and, where the module was never seen, its proxy.
func (p Peer) Find(ctx context.Context, cache string, log io.Writer) (dir string, err error) {
	dir = filepath.Join(cache, p.String())
	if p.complete(dir) {
		return dir, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close() // and so the lock ends
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if p.complete(dir) {
		return dir, nil
	}
	fmt.Fprintf(log, "building %s in %s\n", p, dir)
	if err := p.build(ctx, dir); err != nil {
		return "", fmt.Errorf("build %s: %w", p, err)
	}
	return dir, nil
}

func (p Peer) complete(dir string) bool {
	for _, name := range p.Names() {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return false
		}
	}
	return true
}

// build makes the programs in a module of their own, whose versions of what they
// need are those that the peer names. A program gets its name when it is whole.
func (p Peer) build(ctx context.Context, dir string) (err error) {
	work, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	mod := fmt.Sprintf("module scratch\n\ngo 1.26\n\nrequire %s %s\n", p.Module, p.Version)
	if err := os.WriteFile(filepath.Join(work, "go.mod"), []byte(mod), 0o644); err != nil {
		return err
	}
	out := filepath.Join(work, "bin") + "/"
	flags := []string{"-mod=mod", "-trimpath", "-ldflags=-s -w -X " + p.Module + "/version.Version=" + p.Version, "-tags", p.Tags, "-o", out}
	packages := func(list []string) (all []string) {
		for _, pkg := range list {
			all = append(all, path.Join(p.Module, pkg))
		}
		return all
	}
	if len(p.Programs) > 0 {
		if err := p.goCommand(ctx, work, append(append([]string{"build"}, flags...), packages(p.Programs)...)); err != nil {
			return err
		}
	}
	for _, pkg := range p.Tests { // go test -c names its output NAME.test
		flags[len(flags)-1] = out + path.Base(path.Join(p.Module, pkg))
		if err := p.goCommand(ctx, work, append(append([]string{"test", "-c"}, flags...), packages([]string{pkg})...)); err != nil {
			return err
		}
	}
	for _, name := range p.Names() {
		if err := os.Rename(out+name, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

func (p Peer) goCommand(ctx context.Context, dir string, args []string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off", "CGO_ENABLED="+map[bool]string{false: "0", true: "1"}[p.Cgo])
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", args[0], err, strings.TrimSpace(string(out)))
	}
	return nil
}
