package containers

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// bundleDir is a directory in a container's, which is there if the container has
// hooks: what they are told is the bundle, with a config.json and a place for the root file system.
const bundleDir = "bundle"

// described gives a container the devices that the user asks for by name.
// Nothing of the image, and no annotation, has a part in it (package cdi). bundle is the
// directory for hooks, if it has any.
func (s *Service) described(sp *specs.Spec, a *control.CreateArgs, dir string) (bundle string, warnings []string, err error) {
	if len(a.CDI) == 0 {
		return "", nil, nil
	}
	user := &sp.Process.User
	before := user.AdditionalGids
	user.AdditionalGids = nil
	if warnings, err = s.Described.Inject(sp, a.CDI); err != nil {
		return "", nil, invalid("--device: %v", err)
	}
	for _, g := range user.AdditionalGids { // they are looked up with the user's own
		a.GroupAdd = append(a.GroupAdd, strconv.FormatUint(uint64(g), 10))
	}
	user.AdditionalGids = before
	if sp.Hooks != nil && len(sp.Hooks.CreateContainer) > 0 && len(sp.Linux.UIDMappings) > 0 {
		// They run as the container's root, to whom our directories, and so the bundle, are closed.
		return "", nil, invalid("--device %s: it has createContainer hooks, which cannot do their work as the root of a container with users of its own; add --userns host", strings.Join(a.CDI, ", "))
	}
	if sp.Hooks == nil {
		return "", warnings, nil
	}
	bundle = filepath.Join(dir, bundleDir)
	sp.Root.Path = filepath.Join(bundle, "rootfs")
	return bundle, warnings, nil
}

// fillBundle makes what hooks look for: the spec, and the directory at which the
// root file system is while createContainer hooks run.
func fillBundle(c *monitor.Config) error {
	if c.Bundle == "" {
		return nil
	}
	if err := os.MkdirAll(c.Spec.Root.Path, 0o700); err != nil {
		return err
	}
	b, err := json.Marshal(c.Spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.Bundle, monitor.ConfigFile), b, 0o600)
}
