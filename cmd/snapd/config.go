package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/pelletier/go-toml/v2"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/images"
	"github.com/snapfs/snapfs/internal/userns"
	"github.com/snapfs/snapfs/layers/trust"
)

// Config is snapd's configuration file. Unknown keys are errors: a misspelt
// setting must not silently keep its default.
type Config struct {
	// Root holds all state that outlives a reboot. Default /var/lib/snapfs.
	Root string `toml:"root"`
	// Run holds sockets and mounts. Default /run/snapfs, on a tmpfs because all of it dies with the machine.
	Run string `toml:"run"`
	// Runner is the snapctl executable that monitors and the keeper run as.
	// Default: beside snapd, else the first in PATH.
	Runner string `toml:"runner"`
	// Backend is how images are shown: "erofs", or "directories", which fetches and
	// unpacks all of an image before it starts. Default the first that the kernel
	// can do: directories is for Linux before 6.16, and to rule the other out.
	Backend string `toml:"backend"`
	// CgroupParent is the cgroup below which containers' cgroups are made.
	// Default /snapfs, so that one limit there bounds them all.
	CgroupParent string `toml:"cgroup_parent"`
	// KeeperCgroup is a cgroup of its own for the process that keeps the FUSE
	// connection while there is no snapd: where snapd is a container itself, and all
	// processes of its cgroup end with it. Default none: it stays where snapd is.
	KeeperCgroup string `toml:"keeper_cgroup"`

	Log         LogConfig          `toml:"log"`
	Containerd  []ContainerdConfig `toml:"containerd"`
	Registry    RegistryConfig     `toml:"registry"`
	Credentials CredentialsConfig  `toml:"credentials"`
	Pull        PullConfig         `toml:"pull"`
	Index       IndexConfig        `toml:"index"`
	Disk        DiskConfig         `toml:"disk"`
	Network     NetworkConfig      `toml:"network"`
	Userns      UsernsConfig       `toml:"userns"`
	CDI         CDIConfig          `toml:"cdi"`
	Pool        PoolConfig         `toml:"pool"`
	Metrics     MetricsConfig      `toml:"metrics"`
	Tracing     TracingConfig      `toml:"tracing"`
}

// LogConfig says what is logged; always to standard error.
type LogConfig struct {
	Level  string `toml:"level"`  // debug, info, warn or error. Default info.
	Format string `toml:"format"` // text or json. Default text.
}

// RegistryConfig says how registries are reached.
type RegistryConfig struct {
	// ConfigDirs are searched for HOST/hosts.toml, as containerd does.
	// Default /etc/snapfs/certs.d, /etc/containerd/certs.d, /etc/docker/certs.d.
	ConfigDirs []string `toml:"config_dirs"`
	// DockerConfigs are files or directories with a docker config.json.
	// Default $DOCKER_CONFIG, ~/.docker.
	DockerConfigs []string `toml:"docker_configs"`
	// PlainHTTP names hosts (HOST or HOST:PORT) reached without TLS. Default
	// none; loopback addresses need no entry.
	PlainHTTP []string `toml:"plain_http"`
	// ConnectTimeout bounds connecting, TLS included. Default 10s: twice the
	// second SYN retransmission.
	ConnectTimeout Duration `toml:"connect_timeout"`
	// StallTimeout is how long a response may bring no byte before another
	// attempt is made. Default 15s, so that a second attempt fits in the 30s
	// that a container's read may stand still.
	StallTimeout Duration `toml:"stall_timeout"`
}

// PullConfig says how images come in.
type PullConfig struct {
	// Complete fetches the rest of an image in the background once it is in
	// use. Default true: what is not local fails with the registry.
	Complete bool `toml:"complete"`
	// Bandwidth is the most that is downloaded in a second, all images
	// together: "10MiB". Default no limit. Readers come before the background.
	Bandwidth Size `toml:"bandwidth"`
}

// IndexConfig says which published indexes are believed, and which are
// published. With one an image starts lazily that has no table of contents.
type IndexConfig struct {
	// Trust is whose indexes are believed: "signed" (by one of Keys), "any", or
	// "none". What this node made itself is believed always, and so is an index of
	// SOCI that the image's manifest is bound to; another of SOCI's only with "any",
	// since nobody signs those. Default signed:
	// without keys, nobody's. Whatever the source, no byte is served that does
	// not fit the index, and a layer that does not fit it quarantines its image.
	Trust string `toml:"trust"`
	// Keys are files with ed25519 public keys (PEM). Default none.
	Keys []string `toml:"keys"`
	// Publish pushes the index of an image that was pulled whole to its
	// registry. Default false: it needs the right to push.
	Publish bool `toml:"publish"`
	// SignKey is a file with the ed25519 private key (PEM) to sign what is published with. Default none.
	SignKey string `toml:"sign_key"`
}

// open reads the keys.
func (c *IndexConfig) open() (x images.Indexes, err error) {
	x.Any, x.Publish = c.Trust == trustAny, c.Publish
	if c.Trust != trustNone {
		if x.Keys, err = trust.LoadPublic(c.Keys...); err != nil {
			return x, fmt.Errorf("index.keys: %w", err)
		}
	}
	if c.SignKey != "" {
		key, err := trust.LoadPrivate(c.SignKey)
		if err != nil {
			return x, fmt.Errorf("index.sign_key: %w", err)
		}
		x.Sign = &key
	}
	return x, nil
}

// DiskConfig bounds what is kept.
type DiskConfig struct {
	// Limit is the size of ROOT at which the background stops to complete
	// images: "50GiB". Readers are still served. Default no limit.
	Limit Size `toml:"limit"`
	// Reserve is how much of the file system the background leaves free. Default
	// 1GiB: containers need it more.
	Reserve Size `toml:"reserve"`
}

// The values of IndexConfig.Trust.
const (
	trustSigned = "signed"
	trustAny    = "any"
	trustNone   = "none"
)

// A Size is a number of bytes, written with its unit: "64MiB".
type Size int64

// UnmarshalText parses a size; a rate may end in "/s".
func (s *Size) UnmarshalText(b []byte) error {
	text := strings.TrimSuffix(string(b), "/s")
	v, err := units.RAMInBytes(text)
	if err != nil || v < 0 {
		return fmt.Errorf("size %q: want a number and a unit, as 64MiB", b)
	}
	*s = Size(v)
	return nil
}

// A Duration is written with its unit: "30s".
type Duration time.Duration

// UnmarshalText parses a duration.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// DefaultConfig is what an empty file means.
func DefaultConfig() Config {
	return Config{
		Root: "/var/lib/snapfs", Run: "/run/snapfs", CgroupParent: "/snapfs",
		Log: LogConfig{Level: "info", Format: "text"},
		Registry: RegistryConfig{
			ConfigDirs:     []string{"/etc/snapfs/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"},
			ConnectTimeout: Duration(10 * time.Second),
			StallTimeout:   Duration(15 * time.Second),
		},
		Credentials: CredentialsConfig{ProviderTimeout: Duration(20 * time.Second)},
		Pull:        PullConfig{Complete: true},
		Index:       IndexConfig{Trust: trustSigned},
		Disk:        DiskConfig{Reserve: 1 << 30},

		CDI: CDIConfig{Dirs: []string{"/etc/cdi", "/var/run/cdi"}},
		Network: NetworkConfig{Default: "bridge", Bridge: "snapfs0", IPv4: auto, IPv6: auto, Ahead: true,
			CNIConfig: "/etc/cni/net.d", CNIPlugins: []string{"/opt/cni/bin", "/usr/lib/cni"}, CNITimeout: Duration(30 * time.Second)},
		Userns: UsernsConfig{Default: userns.Host, Range: userns.DefaultSize},
	}
}

// defaultConfigFile is read when --config is not given; it need not exist.
const defaultConfigFile = "/etc/snapfs/snapd.toml"

// LoadConfig reads the file at path over the defaults. If path is "", the
// default file is read where there is one.
func LoadConfig(path string) (Config, error) {
	c := DefaultConfig()
	name := path
	if name == "" {
		name = defaultConfigFile
	}
	b, err := os.ReadFile(name)
	if path == "" && errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, err
	}
	d := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return c, fmt.Errorf("%s: %w", name, explain(err))
	}
	return c, nil
}

// explain turns the decoder's multi-line reports into one line.
func explain(err error) error {
	if e, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		var keys []string
		for _, m := range e.Errors {
			row, _ := m.Position()
			keys = append(keys, strings.Join(m.Key(), ".")+" (line "+strconv.Itoa(row)+")")
		}
		return fmt.Errorf("unknown key %s", strings.Join(keys, ", "))
	}
	if e, ok := errors.AsType[*toml.DecodeError](err); ok {
		row, col := e.Position()
		return fmt.Errorf("line %d, column %d: %w", row, col, err)
	}
	return err
}

// Validate names the first setting that cannot work.
func (c Config) Validate() error {
	for key, p := range map[string]string{"root": c.Root, "run": c.Run} {
		if !filepath.IsAbs(p) || filepath.Clean(p) == "/" {
			return fmt.Errorf("%s = %q: want an absolute path of a directory that is snapd's alone", key, p)
		}
	}
	root, run := filepath.Clean(c.Root), filepath.Clean(c.Run)
	if root == run || strings.HasPrefix(root+"/", run+"/") || strings.HasPrefix(run+"/", root+"/") {
		return fmt.Errorf("root = %q and run = %q: neither may hold the other", c.Root, c.Run)
	}
	if max := maxSocketPath - len("/containers//sock") - 16; len(c.Run) > max {
		return fmt.Errorf("run = %q: longer than the %d bytes that leave room for a socket's name", c.Run, max)
	}
	switch c.Backend {
	case "", mounts.BackendErofs, mounts.BackendDirectories:
	default:
		return fmt.Errorf("backend = %q: want %s or %s", c.Backend, mounts.BackendErofs, mounts.BackendDirectories)
	}
	if c.CgroupParent == "" || c.CgroupParent[0] != '/' || strings.Contains(c.CgroupParent+"/", "/../") {
		return fmt.Errorf("cgroup_parent = %q: want an absolute cgroup path that does not lead upwards", c.CgroupParent)
	}
	if k := c.KeeperCgroup; k != "" && (filepath.Clean(k) != k || k[0] != '/' || k == "/") {
		return fmt.Errorf("keeper_cgroup = %q: want a clean absolute cgroup path", k)
	}
	var l slog.Level
	if err := l.UnmarshalText([]byte(c.Log.Level)); err != nil {
		return fmt.Errorf("log.level = %q: want debug, info, warn or error", c.Log.Level)
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		return fmt.Errorf("log.format = %q: want text or json", c.Log.Format)
	}
	for key, d := range map[string]Duration{"connect_timeout": c.Registry.ConnectTimeout, "stall_timeout": c.Registry.StallTimeout} {
		if d <= 0 || time.Duration(d) > time.Hour {
			return fmt.Errorf("registry.%s = %q: want more than 0 and at most 1h", key, time.Duration(d))
		}
	}
	switch c.Index.Trust {
	case trustSigned, trustAny, trustNone:
	default:
		return fmt.Errorf("index.trust = %q: want signed, any or none", c.Index.Trust)
	}
	if c.Index.SignKey != "" && !c.Index.Publish {
		return errors.New("index.sign_key is set, but index.publish is not: nothing would be signed")
	}
	if err := cmp.Or(c.Credentials.validate(), c.Metrics.validate(), c.Tracing.validate(), c.Network.validate(), c.Userns.validate(), c.CDI.validate(), c.Pool.validate(), c.validateContainerds()); err != nil {
		return err
	}
	const least = 64 << 10 // below that, not even a request a second is answered
	if b := c.Pull.Bandwidth; b != 0 && b < least {
		return fmt.Errorf("pull.bandwidth = %d bytes a second: want at least 64KiB, or 0 for no limit", b)
	}
	return nil
}

// maxSocketPath is the longest path of a unix socket: sun_path less its NUL (unix(7)).
const maxSocketPath = 107

// logger returns the logger that c asks for.
func (c LogConfig) logger() *slog.Logger {
	var level slog.Level
	level.UnmarshalText([]byte(c.Level)) // Validate has seen it
	opts := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, opts))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, opts))
}
