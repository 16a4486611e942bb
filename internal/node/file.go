package node

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// DefaultConfig is the file that containerd reads.
const DefaultConfig = "/etc/containerd/config.toml"

// maxImports bounds the files that a configuration imports.
const maxImports = 256

// ReadConfig reads a configuration file and what it imports. A file that does not
// exist is empty.
func ReadConfig(path string) (text []byte, imported []File, err error) {
	text, err = readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	seen := map[string]bool{path: true}
	todo, err := imports(path, text)
	if err != nil {
		return nil, nil, err
	}
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		if seen[name] {
			continue
		}
		seen[name] = true
		if len(seen) > maxImports {
			return nil, nil, fmt.Errorf("%s: it imports more than %d files", path, maxImports)
		}
		b, err := readFile(name)
		if err != nil {
			return nil, nil, err
		}
		imported = append(imported, File{name, b})
		more, err := imports(name, b)
		if err != nil {
			return nil, nil, err
		}
		todo = append(todo, more...)
	}
	return text, imported, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	b, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err == nil && len(b) > maxConfig {
		err = &LineError{File: path, Err: fmt.Errorf("longer than %d bytes", maxConfig)}
	}
	return b, err
}

// imports returns the files that one imports, as containerd finds them
// (cmd/containerd/server/config/config.go, resolveImports).
func imports(path string, text []byte) (names []string, err error) {
	d, err := parse(text)
	if err != nil {
		if e, ok := errors.AsType[*LineError](err); ok {
			e.File = path
		}
		return nil, err
	}
	list, _ := d.data["imports"].([]any)
	for _, v := range list {
		pattern, _ := v.(string)
		if pattern == "" {
			continue
		}
		if pattern = filepath.Clean(pattern); !filepath.IsAbs(pattern) {
			pattern = filepath.Join(filepath.Dir(path), pattern)
		}
		if !strings.Contains(pattern, "*") {
			names = append(names, pattern)
			continue
		}
		found, err := filepath.Glob(pattern)
		if err != nil {
			return nil, fmt.Errorf("%s: imports %q: %w", path, pattern, err)
		}
		names = append(names, found...)
	}
	return names, nil
}

// Replace writes a configuration file, whole or not at all, and keeps what was
// there beside it. try, if it is not nil, says whether containerd takes it, from
// a file in the same directory. It returns the name of what it kept, "" if there
// was no file. A link stays one.
func Replace(path string, text []byte, now time.Time, try func(file string) error) (kept string, err error) {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	var old []byte
	mode, uid, gid := os.FileMode(0o644), -1, -1
	switch fi, err := os.Stat(path); {
	case err == nil:
		if old, err = readFile(path); err != nil {
			return "", err
		}
		mode = fi.Mode().Perm()
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			uid, gid = int(st.Uid), int(st.Gid)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	// Imports are found from the directory, and *.toml may be imported.
	tmp, err := writeNew(path+".snapfs", text, mode, uid, gid)
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp))
		}
	}()
	if try != nil {
		if err := try(tmp); err != nil {
			return "", fmt.Errorf("containerd does not take what would be written to %s, which stays as it is: %w", path, err)
		}
	}
	if old != nil {
		if kept, err = writeNew(path+"."+now.UTC().Format("20060102T150405Z"), old, mode, uid, gid); err != nil {
			return "", err
		}
		// Somebody may have edited the file meanwhile.
		if again, err := readFile(path); err != nil || !slices.Equal(again, old) {
			return "", errors.Join(fmt.Errorf("%s has changed meanwhile", path), err, os.Remove(kept))
		}
	}
	if err := os.Rename(tmp, path); err != nil {
		return "", err
	}
	return kept, syncDir(filepath.Dir(path))
}

// writeNew makes a file of a name that is not taken, durably.
func writeNew(name string, text []byte, mode os.FileMode, uid, gid int) (_ string, err error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		f, err = os.CreateTemp(filepath.Dir(name), filepath.Base(name)+"-*")
	}
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = io.Copy(f, bytes.NewReader(text))
	if err == nil && uid >= 0 {
		err = f.Chown(uid, gid)
	}
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	return f.Name(), errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
