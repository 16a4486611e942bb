package snapshotter

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// labelVolatile asks for an overlay that never syncs its upper directory. nydus
// and containerd's users of it know the label.
const labelVolatile = "containerd.io/snapshot/overlay.volatile"

// A chain is a committed snapshot with all below it.
//
// Invariant: what the book holds is below everything else, so that there is one
// Stack at most. overlayfs finds the data of a file by an absolute path, from
// the last lower directory only; from a higher one it would look for that path
// in the directories below, too, and refuses to (fs/overlayfs/namei.c
// ovl_lookup, ovl_check_follow_redirect; Linux 6.18) unless it is mounted with
// metacopy=on, which a writable overlay must never be.
type chain struct {
	id   string   // of the snapshot itself; "" if there is none
	dirs []string // IDs of those with a directory, highest first
	held []row    // lowest first
}

// stack is what the book has to mount.
func (c chain) stack(m IDMap) Stack {
	st := Stack{Map: m}
	for _, r := range c.held {
		st.Layers = append(st.Layers, r.Layer)
	}
	return st
}

// chainOf finds the chain of a committed snapshot. ctx has the transaction tx.
func (s *Snapshotter) chainOf(ctx context.Context, tx *bolt.Tx, name string) (c chain, err error) {
	for at := name; at != ""; {
		id, info, _, err := storage.GetInfo(ctx, at)
		if err != nil {
			return c, fmt.Errorf("parent %q: %w", at, err)
		}
		if info.Kind != snapshots.KindCommitted {
			return c, fmt.Errorf("parent %q is not committed: %w", at, errdefs.ErrInvalidArgument)
		}
		if c.id == "" {
			if c, ok := s.index.chainOf(id); ok {
				return c, nil
			}
			c.id = id
		}
		r, held, err := rowOf(tx, id)
		switch {
		case err != nil:
			return c, err
		case held:
			c.held = append(c.held, r)
		case len(c.held) > 0:
			return c, fmt.Errorf("snapshot %q: a directory below a layer that is held: %w", name, errdefs.ErrInternal)
		default:
			c.dirs = append(c.dirs, id)
		}
		at = info.Parent
	}
	slices.Reverse(c.held)
	s.index.keepChain(c)
	return c, nil
}

// needs is what a snapshot on the chain is mounted from.
func (c chain) needs(m IDMap) needs {
	n := needs{mapped: m}
	if len(c.dirs) == 0 {
		n.mapped = IDMap{}
	}
	if len(c.held) > 0 {
		n.stack = c.stack(m)
	}
	return n
}

// needs are the mounts below an active snapshot or a view.
type needs struct {
	stack  Stack // no layers: none
	mapped IDMap // of directories; the zero value: none
}

// lowers are directories that show a chain.
type lowers struct {
	dirs  []string // highest first; the last may be the book's
	links []string // shorter names of them
	data  []string // data-only layers
}

// lower makes the directories of a chain ready. It may wait for the book.
func (s *Snapshotter) lower(ctx context.Context, c chain, m IDMap) (l lowers, err error) {
	dirs, suffix := s.dirs, ""
	if m != (IDMap{}) && len(c.dirs) > 0 {
		if s.mapper == nil {
			return l, fmt.Errorf("owners are shifted by a mount, and nobody is here to make it: %w", errdefs.ErrNotImplemented)
		}
		s.mapping.RLock()
		dirs, err = s.mapper.MapDir(ctx, s.dirs, m)
		s.mapping.RUnlock()
		if err != nil {
			return l, fmt.Errorf("shift owners: %w", err)
		}
		suffix = linkSuffix(dirs)
	}
	for _, id := range c.dirs {
		l.dirs = append(l.dirs, filepath.Join(dirs, id, "fs"))
		l.links = append(l.links, filepath.Join(s.links, linkName(id)+suffix))
	}
	if len(c.held) > 0 {
		if s.layers == nil {
			return l, fmt.Errorf("there is no book of images that holds its layers: %w", errdefs.ErrUnavailable)
		}
		mounted, err := s.layers.Mount(ctx, c.stack(m))
		if err != nil {
			return l, fmt.Errorf("mount what is held: %w", err)
		}
		l.dirs = append(l.dirs, mounted.Dir)
		l.links = append(l.links, mounted.Dir)
		l.data = mounted.Data
	}
	return l, nil
}

// A form is the way in which a snapshot is mounted, as far as it is not said by
// what is below it. It follows from what is in the database, so Mounts answers as Prepare did.
type form struct {
	id       string
	view     bool
	volatile bool
	// unpack: a layer will be unpacked into it. containerd does that without
	// mounting (core/diff/apply/apply_linux.go, 2.2 to 2.4): with an overlay it
	// writes into upperdir and takes the owners and modes of directories that
	// the layer does not have from those of lowerdir. Data-only layers are left
	// out then: it splits lowerdir at each ':', and what is between "::" would
	// be the host's root directory to it.
	unpack bool
	// floating: without a parent now, and not the lowest layer: Commit will bring
	// the parent. Only an overlay keeps the layer's whiteouts.
	floating bool
	// buildkit: it wants one mount, or else compares whole trees to see what a
	// step has changed (util/overlay GetUpperdir), and reads no directory directly.
	buildkit bool
	// staged: the content is there, nothing needs to be unpacked. A read-only
	// mount says so to containerd 2.4. One of before writes into upperdir anyway.
	staged bool
}

// builds says whether a key is one that BuildKit has made: 25 digits of base 36
// (identity, NewID, 0.34). Containers have 64 of base 16, or names. Docker builds
// in its own namespace, moby.
func builds(key string) bool {
	key = key[strings.LastIndexByte(key, '/')+1:]
	return len(key) == 25 && strings.Trim(key, "0123456789abcdefghijklmnopqrstuvwxyz") == ""
}

func formOf(id string, info snapshots.Info, staged bool) form {
	f := form{
		id:   id,
		view: info.Kind == snapshots.KindView,
		// NAMESPACE/ID/KEY (core/metadata/snapshot.go, createKey).
		buildkit: strings.HasPrefix(info.Name, "buildkit/") || builds(info.Name),
	}
	if f.unpack = !f.view && unpacks(info.Name, info.Labels); !f.unpack {
		_, f.volatile = info.Labels[labelVolatile]
		return f
	}
	f.staged = staged
	if info.Parent == "" && info.Labels[snapshots.LabelSnapshotRef] != "" {
		c, _ := readClaim(info.Labels)
		lowest, known := c.lowest()
		f.floating = !known || !lowest
	}
	return f
}

// mounts are what containerd has to mount.
func (s *Snapshotter) mounts(f form, l lowers) ([]mount.Mount, error) {
	access := "rw"
	if f.view {
		access = "ro"
	}
	bind := func(dir string) []mount.Mount {
		return []mount.Mount{{Type: "bind", Source: dir, Options: []string{access, "rbind"}}}
	}
	if len(l.dirs) == 0 && !f.floating && !f.staged {
		return bind(s.upper(f.id)), nil
	}
	if f.view && len(l.dirs) == 1 && len(l.data) == 0 {
		return bind(l.dirs[0]), nil
	}
	// An administrator may have set other defaults as parameters of the module.
	// With redirect_dir=off there is no metacopy, either (fs/overlayfs/params.c).
	// No other options: BuildKit reads these, and does without the upper
	// directory if it finds one that it does not know (util/overlay).
	options := []string{"index=off", "redirect_dir=off"}
	if f.staged {
		options = append(options, "ro")
	}
	if f.volatile {
		options = append(options, "volatile")
	}
	if !f.view {
		options = append(options, "workdir="+s.work(f.id), "upperdir="+s.upper(f.id))
	}
	if len(l.dirs) > 0 {
		data := l.data
		if f.unpack {
			data = nil
		}
		lower, err := s.lowerdir(l, data, len(strings.Join(options, ",")))
		if err != nil {
			return nil, err
		}
		options = append(options, lower)
	}
	all := []mount.Mount{{Type: "overlay", Source: "overlay", Options: options}}
	if len(l.data) > 0 && !f.view && !f.unpack && !f.buildkit {
		all = append(all, nothing)
	}
	return all, nil
}

// nothing is a mount that changes nothing: mount(2) is not called for a remount
// without data (core/mount/mount_linux.go, the same in all of 2.x). A container's
// snapshot ends with it to keep containerd 2.3 and newer, which look at the type
// of the last mount, from reading /etc/passwd straight from the directories of an
// overlay (internal/fsview): what is between "::" would be a directory without a
// name, and files of an image have no data there. Views are without, for who
// looks into images by way of containerd's mounts service: that shows the last of
// the mounts only (core/mount/manager, WithTemporary).
var nothing = mount.Mount{Type: "none", Source: "none", Options: []string{"remount"}}

// maxOptions is how long the options of a mount may be together with their NUL:
// a page (fs/namespace.c copy_mount_options).
const maxOptions = 4096

// lowerdir is the option with that name. Beside other bytes of options it has to
// fit into a page, with shorter names if need be. Longer ones without data-only
// layers are left to containerd, which can shorten them.
func (s *Snapshotter) lowerdir(l lowers, data []string, other int) (string, error) {
	join := func(dirs []string) string {
		return "lowerdir=" + strings.Join(append([]string{strings.Join(dirs, ":")}, data...), "::")
	}
	long := join(l.dirs)
	if other+len(",")+len(long) < maxOptions {
		return long, nil
	}
	short := join(l.links)
	if n := other + len(",") + len(short); n >= maxOptions && len(data) > 0 {
		return "", fmt.Errorf("%d directories above an image: %d bytes of mount options, at most %d: %w", len(l.dirs)-1, n, maxOptions-1, errdefs.ErrFailedPrecondition)
	}
	for i, name := range l.links {
		if name == l.dirs[i] {
			continue
		}
		if err := link(l.dirs[i], name); err != nil {
			return "", err
		}
	}
	return short, nil
}

// tmpPrefix begins names of links that are being exchanged. No ID begins so.
const tmpPrefix = ".new-"

// linkBase makes names of links short.
const linkBase = 36

// linkName is the link to a snapshot's directory. It is followed by "-" and
// something else if that has shifted owners.
func linkName(id string) string {
	n, err := strconv.ParseUint(id, 10, 64)
	if err != nil {
		return id // there is none like that
	}
	return strconv.FormatUint(n, linkBase)
}

// linkSuffix names a directory of mounts with shifted owners. It has 96 bits: two
// that are the same would take each other's links, and each byte is one for every
// layer in a mount's page of options.
func linkSuffix(dirs string) string {
	sum := sha256.Sum256([]byte(dirs))
	return "-" + base64.RawURLEncoding.EncodeToString(sum[:12])
}

// link makes name a symbolic link to dir.
func link(dir, name string) error {
	err := os.Symlink(dir, name)
	if !errors.Is(err, os.ErrExist) {
		return err
	}
	if is, err := os.Readlink(name); err == nil && is == dir {
		return nil
	}
	// One of an earlier time, when Root was elsewhere.
	tmp, err := os.MkdirTemp(filepath.Dir(name), tmpPrefix)
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := os.Symlink(dir, filepath.Join(tmp, "l")); err != nil {
		return err
	}
	return os.Rename(filepath.Join(tmp, "l"), name)
}
