package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// parseBytes reads a size as docker does: a number with an optional unit
// b, k, m, g, t or p (or KiB, kb, …), all powers of 1024.
func parseBytes(s string) (int64, error) {
	i := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if i < 0 {
		i = len(s)
	}
	n, err := strconv.ParseFloat(s[:i], 64)
	unit := strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(strings.TrimSpace(s[i:])), "b"), "i")
	power := strings.Index("kmgtp", unit) + 1
	switch {
	case unit == "":
		power = 0
	case len(unit) != 1 || power == 0:
		err = strconv.ErrSyntax
	}
	size := n * math.Pow(1024, float64(power))
	if err != nil || size > math.MaxInt64/2 {
		return 0, fmt.Errorf("%q: want a size such as 512m or 2g", s)
	}
	return int64(size), nil
}

// parseCPUs reads a number of CPUs into billionths. It is done in integers, so
// that 0.29 is 290000000 and not one less.
func parseCPUs(s string) (int64, error) {
	bad := fmt.Errorf("%q: want a number of CPUs such as 1.5", s)
	whole, fraction, _ := strings.Cut(s, ".")
	if whole+fraction == "" || len(whole) > 6 || len(fraction) > 9 || strings.ContainsFunc(whole+fraction, func(r rune) bool { return r < '0' || r > '9' }) {
		return 0, bad
	}
	n, err := strconv.ParseInt("0"+whole+fraction+strings.Repeat("0", 9-len(fraction)), 10, 64)
	if err != nil {
		return 0, bad
	}
	return n, nil
}

// ulimitNames are those of setrlimit(2), as docker calls them.
var ulimitNames = []string{
	"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice",
	"nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack",
}

// parseUlimit reads NAME=SOFT[:HARD]; -1 or "unlimited" is no limit.
func parseUlimit(s string) (u control.Ulimit, err error) {
	name, values, ok := strings.Cut(s, "=")
	if !ok {
		return u, fmt.Errorf("%q: want NAME=SOFT[:HARD]", s)
	}
	if !slices.Contains(ulimitNames, name) {
		return u, fmt.Errorf("%q: unknown limit; known are %s", name, strings.Join(ulimitNames, ", "))
	}
	u.Name = name
	soft, hard, two := strings.Cut(values, ":")
	if u.Soft, err = parseLimit(soft); err != nil {
		return u, fmt.Errorf("%q: %w", s, err)
	}
	u.Hard = u.Soft
	if two {
		if u.Hard, err = parseLimit(hard); err != nil {
			return u, fmt.Errorf("%q: %w", s, err)
		}
	}
	if uint64(u.Soft) > uint64(u.Hard) { // -1 is the greatest
		return u, fmt.Errorf("%q: the soft limit is above the hard one", s)
	}
	return u, nil
}

func parseLimit(s string) (int64, error) {
	if s == "unlimited" {
		return -1, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < -1 {
		return 0, fmt.Errorf("%q is no limit", s)
	}
	return n, nil
}

// parseVolume reads -v SOURCE:TARGET[:OPTIONS].
func parseVolume(s string) (m control.MountSpec, err error) {
	parts := strings.Split(s, ":")
	switch {
	case len(parts) == 1:
		return m, fmt.Errorf("%q: anonymous volumes are not supported yet; want SOURCE:TARGET", s)
	case len(parts) > 3:
		return m, fmt.Errorf("%q: want SOURCE:TARGET[:OPTIONS]", s)
	}
	m = control.MountSpec{Type: "bind", Target: parts[1], Create: true}
	if m.Source, err = source(parts[0]); err != nil {
		return m, err
	}
	if err := target(m.Target); err != nil {
		return m, err
	}
	if len(parts) == 2 {
		return m, nil
	}
	for o := range strings.SplitSeq(parts[2], ",") {
		switch o {
		case "rw", "z", "Z": // labels mean nothing without SELinux
		case "ro":
			m.ReadOnly = true
		case "private", "rprivate", "shared", "rshared", "slave", "rslave", "idmap", "ridmap":
			m.Options = append(m.Options, o)
		default:
			return m, fmt.Errorf("%q: unknown option %q", s, o)
		}
	}
	return m, nil
}

// source makes a path on this machine absolute.
func source(s string) (string, error) {
	switch {
	case s == "":
		return "", errors.New("the source is empty")
	case strings.HasPrefix(s, "/"), s == ".", s == "..", strings.HasPrefix(s, "./"), strings.HasPrefix(s, "../"):
		return filepath.Abs(s)
	}
	return "", fmt.Errorf("volume %q: named volumes are not supported yet; a directory begins with / or ./", s)
}

func target(s string) error {
	if !filepath.IsAbs(s) || filepath.Clean(s) == "/" {
		return fmt.Errorf("target %q: want an absolute path other than /", s)
	}
	return nil
}

// parseMount reads --mount type=bind,source=…,target=…
func parseMount(s string) (m control.MountSpec, err error) {
	m.Type = "volume" // docker's default
	propagation, shift := "", ""
	for field := range strings.SplitSeq(s, ",") {
		key, value, given := strings.Cut(field, "=")
		switch strings.ToLower(key) {
		case "type":
			m.Type = strings.ToLower(value)
		case "source", "src":
			m.Source = value
		case "target", "destination", "dst":
			m.Target = value
		case "readonly", "ro":
			m.ReadOnly = true
			if given {
				if m.ReadOnly, err = strconv.ParseBool(value); err != nil {
					return m, fmt.Errorf("%q: want true or false", field)
				}
			}
		case "idmap", "ridmap":
			if given {
				return m, fmt.Errorf("%q: only the container's own mappings are supported: want %s alone", field, key)
			}
			shift = strings.ToLower(key)
		case "bind-propagation":
			propagation = value
		case "tmpfs-size":
			n, err := parseBytes(value)
			if err != nil {
				return m, fmt.Errorf("tmpfs-size: %w", err)
			}
			m.Options = append(m.Options, "size="+strconv.FormatInt(n, 10))
		case "tmpfs-mode":
			n, err := strconv.ParseUint(value, 8, 12)
			if err != nil {
				return m, fmt.Errorf("tmpfs-mode %q: want an octal mode such as 1777", value)
			}
			m.Options = append(m.Options, fmt.Sprintf("mode=%o", n))
		default:
			return m, fmt.Errorf("%q: unknown key %q", s, key)
		}
	}
	return m, checkMount(&m, propagation, shift)
}

func checkMount(m *control.MountSpec, propagation, shift string) (err error) {
	if err := target(m.Target); err != nil {
		return err
	}
	switch m.Type {
	case "bind":
		if len(m.Options) > 0 {
			return errors.New("tmpfs options do not fit a bind mount")
		}
		if propagation != "" {
			if !slices.Contains([]string{"private", "rprivate", "shared", "rshared", "slave", "rslave"}, propagation) {
				return fmt.Errorf("bind-propagation %q: unknown", propagation)
			}
			m.Options = append(m.Options, propagation)
		}
		if shift != "" {
			m.Options = append(m.Options, shift)
		}
		m.Source, err = source(m.Source)
		return err
	case "tmpfs":
		if m.Source != "" || propagation != "" || shift != "" {
			return errors.New("a tmpfs has no source")
		}
		return nil
	}
	return fmt.Errorf("type %q: only bind and tmpfs are supported", m.Type)
}

// parseEnv reads one -e: NAME=VALUE, or NAME to take the value from here; ok is
// false if that has none.
func parseEnv(s string, getenv func(string) (string, bool)) (kv string, ok bool, err error) {
	name, _, given := strings.Cut(s, "=")
	switch {
	case name == "":
		return "", false, fmt.Errorf("%q: the name is empty", s)
	case strings.ContainsRune(s, 0):
		return "", false, fmt.Errorf("%q: contains a NUL", s)
	case given:
		return s, true, nil
	}
	value, ok := getenv(name)
	return name + "=" + value, ok, nil
}

// parseEnvFile reads a file of lines as parseEnv takes them; empty ones and
// those that begin with # say nothing.
func parseEnvFile(b []byte, getenv func(string) (string, bool)) (env []string, err error) {
	scan := bufio.NewScanner(bytes.NewReader(bytes.TrimPrefix(b, []byte("\ufeff"))))
	scan.Buffer(nil, 1<<20)
	for n := 1; scan.Scan(); n++ {
		line := strings.TrimLeftFunc(scan.Text(), unicode.IsSpace)
		if line == "" || line[0] == '#' {
			continue
		}
		if !utf8.ValidString(line) {
			return nil, fmt.Errorf("line %d: not UTF-8", n)
		}
		name, _, _ := strings.Cut(line, "=")
		if strings.ContainsFunc(name, unicode.IsSpace) {
			return nil, fmt.Errorf("line %d: %q: a name cannot contain white space", n, name)
		}
		kv, ok, err := parseEnv(line, getenv)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if ok {
			env = append(env, kv)
		}
	}
	return env, scan.Err()
}

// maxFile bounds a file that is named on the command line, bytes: all of them
// together have to fit into a request.
const maxFile = 1 << 20

// readFile reads a file that a user named; who names /dev/zero is told.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s: larger than %d bytes", path, maxFile)
	}
	return b, err
}

func readEnvFile(path string) ([]string, error) {
	b, err := readFile(path)
	if err != nil {
		return nil, err
	}
	env, err := parseEnvFile(b, os.LookupEnv)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return env, nil
}

// securityOpt puts a seccomp profile's text in the place of its file name.
func securityOpt(s string) (string, error) {
	name, value, ok := strings.Cut(s, "=")
	if !ok {
		name, value, ok = strings.Cut(s, ":")
	}
	if !ok || name != "seccomp" || value == "unconfined" || value == "builtin" {
		return s, nil
	}
	b, err := readFile(value)
	if err != nil {
		return "", fmt.Errorf("seccomp profile: %w", err)
	}
	return "seccomp=" + string(b), nil
}

// parseLogOpt reads one --log-opt of docker's json-file driver.
func parseLogOpt(s string, a *control.CreateArgs) (err error) {
	name, value, _ := strings.Cut(s, "=")
	switch name {
	case "max-size":
		if value == "-1" { // docker's way to say that there is none
			a.LogMaxSize = 0
			return nil
		}
		if a.LogMaxSize, err = parseBytes(value); err == nil && a.LogMaxSize == 0 {
			err = fmt.Errorf("%q: want a size such as 10m, or -1 for no limit", s)
		}
		return err
	case "max-file":
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 || n > monitor.MaxLogFiles {
			return fmt.Errorf("%q: want a number of files from 1 to %d", s, monitor.MaxLogFiles)
		}
		a.LogMaxFiles = n
		return nil
	}
	return fmt.Errorf("%q: unknown option; want max-size=SIZE or max-file=N", s)
}
