package vm

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// A kernel is an unpacked package of one.
type kernel struct {
	image   string            // boot/vmlinuz-…
	modules map[string]string // paths by name
	builtin map[string]bool
}

// openKernel looks at a directory to which a kernel's package was unpacked.
func openKernel(dir string) (*kernel, error) {
	images, err := filepath.Glob(filepath.Join(dir, "boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return nil, fmt.Errorf("%s: %d kernels in boot: %w", dir, len(images), fs.ErrNotExist)
	}
	release := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	k := &kernel{image: images[0], modules: map[string]string{}, builtin: map[string]bool{}}
	top := filepath.Join(dir, "lib/modules", release)
	if _, err := os.Stat(top); err != nil {
		top = filepath.Join(dir, "usr/lib/modules", release)
	}
	err = filepath.WalkDir(filepath.Join(top, "kernel"), func(at string, e fs.DirEntry, err error) error {
		if name, ok := moduleName(at); err == nil && ok && !e.IsDir() {
			k.modules[name] = at
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	list, err := os.ReadFile(filepath.Join(top, "modules.builtin"))
	for line := range strings.FieldsSeq(string(list)) {
		if name, ok := moduleName(line); ok {
			k.builtin[name] = true
		}
	}
	return k, err
}

// moduleName is what a module's file is called in the kernel.
func moduleName(file string) (string, bool) {
	name, kind, ok := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_"), ok && (kind == "" || kind == ".xz")
}

// load returns the modules to load for those named, in order: what one depends
// on comes before it. The package has no modules.dep, so each says it itself.
func (k *kernel) load(names []string) (list []File, err error) {
	seen := map[string]bool{}
	var add func(name string, must bool) error
	add = func(name string, must bool) error {
		name = strings.ReplaceAll(name, "-", "_")
		at, ok := k.modules[name]
		switch {
		case seen[name] || k.builtin[name] || !ok && !must:
			return nil
		case !ok:
			return fmt.Errorf("the kernel has no module %s", name)
		}
		seen[name] = true
		b, err := readModule(at)
		if err != nil {
			return err
		}
		depends, before, err := needs(b)
		if err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		for _, d := range before {
			if err := add(d, false); err != nil {
				return err
			}
		}
		for _, d := range depends {
			if err := add(d, true); err != nil {
				return err
			}
		}
		list = append(list, File{Name: fmt.Sprintf("modules/%03d-%s.ko", len(list), name), Mode: 0o644, Data: b})
		return nil
	}
	for _, n := range names {
		if err := add(n, true); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// readModule reads a module's file, which later Debian kernels compress.
func readModule(at string) ([]byte, error) {
	if !strings.HasSuffix(at, ".xz") {
		return os.ReadFile(at)
	}
	b, err := exec.Command("xz", "-dc", at).Output()
	if err != nil {
		return nil, fmt.Errorf("xz -dc %s: %w", at, err)
	}
	return b, nil
}

// needs reads a module's .modinfo: the modules that it cannot do without, and
// those that it would like to have before it (softdep).
func needs(module []byte) (depends, before []string, err error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, nil, fmt.Errorf("no .modinfo: %w", fs.ErrInvalid)
	}
	info, err := s.Data()
	if err != nil {
		return nil, nil, err
	}
	depends, before = parseInfo(string(info))
	return depends, before, nil
}

func parseInfo(info string) (depends, before []string) {
	for entry := range strings.SplitSeq(info, "\x00") {
		key, value, _ := strings.Cut(entry, "=")
		switch key {
		case "depends":
			depends = append(depends, strings.FieldsFunc(value, func(r rune) bool { return r == ',' })...)
		case "softdep":
			words := strings.Fields(value)
			if i := slices.Index(words, "pre:"); i >= 0 {
				for _, w := range words[i+1:] {
					if strings.HasSuffix(w, ":") {
						break
					}
					before = append(before, w)
				}
			}
		}
	}
	return depends, before
}
