// Package cdi gives containers devices by the names that the Container Device
// Interface has for them: vendor.com/class=name. What such a name stands for
// (device nodes, mounts, variables, hooks, groups) is said by files that the
// vendor's tools write into a few directories, which are the administrator's.
//
// A description runs programs as root (hooks) and shows any file of the host.
// So a name is only ever taken from who asks for the container, never from an image or from
// annotations (CVE-2026-53492), and files that anybody else can write are not believed.
//
// The format is https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md.
package cdi

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
	format "tags.cncf.io/container-device-interface/specs-go"
)

// Dirs are the directories with descriptions. A device in a later one hides one
// of that name in an earlier one.
type Dirs []string

// Bounds of what is read, and of what is said about it.
const (
	maxFile  = 1 << 20 // bytes
	maxFiles = 256     // of a directory
	maxNames = 512     // of devices that one container asks for
	maxKnown = 20      // devices that an error lists
	maxBad   = 8       // files that an error, or a warning, is about
)

// errUntrusted says that somebody else than root could have written a file.
var errUntrusted = errors.New("it can be written by others than root, so it is not believed")

// CheckName says whether name is that of a device: vendor.com/class=name.
func CheckName(name string) error {
	if len(name) > 512 {
		return fmt.Errorf("%.40q…: longer than 512 bytes", name)
	}
	_, _, _, err := parser.ParseQualifiedName(name)
	return err
}

// Inject adds to s what the named devices need. Warnings are the files that
// could not be used; they may have been meant to say something about one of the names. If
// it fails, s is in parts.
func (d Dirs) Inject(s *specs.Spec, names []string) (warnings []string, err error) {
	if len(names) > maxNames {
		return nil, fmt.Errorf("%d devices: more than %d", len(names), maxNames)
	}
	b := d.load()
	var list []*cdi.Device
	for _, name := range names {
		if err := CheckName(name); err != nil {
			return nil, err
		}
		dev, err := b.find(d, name)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(list, dev) {
			list = append(list, dev)
		}
	}
	var done []*cdi.Spec
	for _, dev := range list {
		file := dev.GetSpec()
		if !slices.Contains(done, file) { // what all of its devices have in common
			done = append(done, file)
			if err := edit(s, &file.ContainerEdits); err != nil {
				return nil, fmt.Errorf("%s: %w", file.GetPath(), err)
			}
		}
		if err := edit(s, &dev.ContainerEdits); err != nil {
			return nil, fmt.Errorf("%s: device %s: %w", file.GetPath(), dev.GetQualifiedName(), err)
		}
	}
	for _, e := range b.bad[:min(len(b.bad), maxBad)] {
		warnings = append(warnings, "device description not used: "+e.Error())
	}
	return warnings, nil
}

// edit carries out one list of edits.
func edit(s *specs.Spec, e *format.ContainerEdits) error {
	switch {
	case e.IntelRdt != nil:
		return errors.New("intelRdt is not supported")
	case len(e.NetDevices) > 0:
		return errors.New("netDevices are not supported")
	}
	for _, h := range e.Hooks {
		if !filepath.IsAbs(h.Path) {
			return fmt.Errorf("%s hook %q: want an absolute path", h.HookName, h.Path)
		}
	}
	for _, m := range e.Mounts {
		if !filepath.IsAbs(m.ContainerPath) || filepath.Clean(m.ContainerPath) == "/" {
			return fmt.Errorf("mount at %q: want an absolute path other than /", m.ContainerPath)
		}
	}
	for _, n := range e.DeviceNodes {
		if !filepath.IsAbs(n.Path) {
			return fmt.Errorf("device node %q: want an absolute path", n.Path)
		}
	}
	return (&cdi.ContainerEdits{ContainerEdits: e}).Apply(s)
}

// book is what the directories say.
type book struct {
	devices map[string]*cdi.Device
	twice   map[string]string // devices that two files of one directory have: which
	bad     []error           // files that cannot be used
}

func (d Dirs) load() *book {
	b := &book{devices: map[string]*cdi.Device{}, twice: map[string]string{}}
	for priority, dir := range d {
		names, err := list(dir)
		if err != nil {
			b.bad = append(b.bad, err)
		}
		for _, name := range names {
			path := filepath.Join(dir, name)
			s, err := read(path, priority)
			if err != nil {
				b.bad = append(b.bad, fmt.Errorf("%s: %w", path, err))
				continue
			}
			b.add(s)
		}
	}
	return b
}

// list returns the names of a directory's descriptions, in order.
func list(dir string) (names []string, err error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	if !trusted(&st) {
		return nil, fmt.Errorf("%s: %w", dir, errUntrusted)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); (ext == ".json" || ext == ".yaml") && !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	if len(names) > maxFiles {
		return names[:maxFiles], fmt.Errorf("%s: more than %d files: the others are not read", dir, maxFiles)
	}
	return names, nil
}

func read(path string, priority int) (*cdi.Spec, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0) // a FIFO would wait for its writer
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	switch err := unix.Fstat(fd, &st); {
	case err != nil:
		return nil, err
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, errors.New("it is no regular file")
	case !trusted(&st):
		return nil, errUntrusted
	case st.Size > maxFile:
		return nil, fmt.Errorf("larger than %d bytes", maxFile)
	}
	return cdi.ReadSpec(path, priority)
}

// trusted tells whether only root, or whom root has let, can write a file.
func trusted(st *unix.Stat_t) bool {
	return (st.Uid == 0 || int(st.Uid) == os.Geteuid()) && st.Mode&0o002 == 0
}

// add enters a file's devices. Those of a later directory win.
func (b *book) add(s *cdi.Spec) {
	for _, raw := range s.Devices {
		dev := s.GetDevice(raw.Name)
		name := dev.GetQualifiedName()
		if old := b.devices[name]; old != nil && old.GetSpec().GetPriority() == s.GetPriority() {
			b.twice[name] = fmt.Sprintf("%s and %s", old.GetSpec().GetPath(), s.GetPath())
			continue
		}
		delete(b.twice, name)
		b.devices[name] = dev
	}
}

func (b *book) find(d Dirs, name string) (*cdi.Device, error) {
	if files := b.twice[name]; files != "" {
		return nil, fmt.Errorf("device %s: both %s describe it", name, files)
	}
	if dev := b.devices[name]; dev != nil {
		return dev, nil
	}
	text := fmt.Sprintf("device %s: it is not described in %s", name, strings.Join(d, ", "))
	if len(d) == 0 {
		text = fmt.Sprintf("device %s: no directories of descriptions are configured", name)
	}
	known := slices.Sorted(maps.Keys(b.devices))
	switch more := len(known) - maxKnown; {
	case len(known) == 0:
		text += "; no device is"
	case more > 0:
		text += fmt.Sprintf("; those that are: %s and %d more", strings.Join(known[:maxKnown], ", "), more)
	default:
		text += "; those that are: " + strings.Join(known, ", ")
	}
	for _, e := range b.bad[:min(len(b.bad), maxBad)] {
		text += "; not used: " + e.Error()
	}
	return nil, &UnknownError{name, text}
}

// An UnknownError says that no file that can be used describes a device, and which do what.
type UnknownError struct{ Name, text string }

func (e *UnknownError) Error() string { return e.text }
