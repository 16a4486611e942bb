package monitor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// Names of the files in a container's directory.
const (
	ConfigFile = "config.json"
	StateFile  = "state.json"
	LogFile    = "log.json"
	lockFile   = "lock" // held by a monitor as long as it answers
	busyFile   = "busy" // held by a monitor as long as it has anything of the container
)

// Config is what a container is. The daemon writes it once, before the first monitor.
type Config struct {
	ID, Name, Image string
	Spec            *specs.Spec
	User            string // "user[:group]" as the image or the client gave it; looked up in the root file system at every start
	Rootfs          control.Rootfs
	TTY             bool
	OpenStdin       bool // false: standard input is /dev/null
	Remove          bool // the directory goes away when the container ends
	Init            bool // a tiny first process reaps zombies and forwards signals
	Height, Width   uint16
	StopSignal      string                // "" is SIGTERM
	StopTimeout     *int                  `json:",omitempty"` // seconds from StopSignal to SIGKILL, if the client does not say; negative: never; nil: 10
	GroupAdd        []string              `json:",omitempty"` // supplementary groups; names are looked up as User is
	Joins           map[string]string     `json:",omitempty"` // "ipc", "pid", "user" → the container whose namespace it shares; the daemon's business
	IDs             *control.IDRange      `json:",omitempty"` // that its user namespace has to itself; nil: it has none
	CgroupParent    string                // cgroup below which the container's is made
	Socket          string                // where the monitor listens
	Log             string                `json:",omitempty"` // "" is log.json in the container's directory
	LogOptions      LogOptions            `json:",omitzero"`
	SeccompCache    string                `json:",omitempty"` // directory of compiled filters; "": compiled at every start
	Network         control.NetworkConfig `json:",omitzero"`  // how it is connected; the daemon's business
	Ready           string                `json:",omitempty"` // see ParseReady; "" leaves it to Health or, without that, to the daemon
	Health          *control.Healthcheck  `json:",omitempty"` // nil: none
	Bundle          string                `json:",omitempty"` // directory that hooks are told, with the spec for them to read; "": there is none
	Created         time.Time             // when the client asked for it
	Labels          map[string]string     `json:",omitempty"`
}

// LogOptions say what is kept of a container's output; all, if nothing is set.
type LogOptions struct {
	None     bool  `json:",omitempty"` // nothing
	MaxSize  int64 `json:",omitempty"` // bytes of a file after which another is begun; 0: no limit
	MaxFiles int   `json:",omitempty"` // how many files there are at most; with MaxSize only. 0 is 1
}

func (c *Config) logPath(dir string) string {
	if c.Log != "" {
		return c.Log
	}
	return filepath.Join(dir, LogFile)
}

// LoadConfig reads the configuration of the container in dir.
func LoadConfig(dir string) (*Config, error) {
	path := filepath.Join(dir, ConfigFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	c, err := decodeConfig(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

func decodeConfig(b []byte) (*Config, error) {
	c := new(Config)
	if err := decodeFields(b, c); err != nil {
		return nil, err
	}
	return c, c.complete()
}

// complete checks a configuration that was decoded, and fills in what follows from it.
func (c *Config) complete() error {
	switch {
	case c.ID == "":
		return errors.New("no ID")
	case c.Spec == nil || c.Spec.Process == nil:
		return errors.New("no process")
	case c.Socket == "":
		return errors.New("no socket")
	}
	c.Spec.Process.Terminal = c.TTY
	if _, err := parseSignal(c.StopSignal, unix.SIGTERM); err != nil {
		return err
	}
	if o := c.LogOptions; o.MaxSize < 0 || o.MaxFiles < 0 || o.MaxFiles > MaxLogFiles {
		return fmt.Errorf("log of %d files of %d bytes", o.MaxFiles, o.MaxSize)
	}
	if c.Health != nil {
		if _, err := healthArgs(c.Health.Test); err != nil {
			return err
		}
	}
	_, err := c.condition()
	return err
}

// Save writes c into dir; durably, unless the container is one that a power cut removes anyway.
func (c *Config) Save(dir string) error {
	return writeJSON(dir, ConfigFile, c, !c.Remove)
}

// writeJSON replaces dir/name atomically. With sync, it has survived a power
// cut when writeJSON returns.
func writeJSON(dir, name string, v any, sync bool) (err error) {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+name+"-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(append(b, '\n'))
	if err == nil && sync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, name)); err != nil || !sync {
		return err
	}
	return syncDir(dir)
}

// overwrite writes v over what dir/name has, which needs no room on a full disk
// as long as it fits into the blocks that the file has. Cut off in the middle it
// leaves a file that cannot be decoded.
func overwrite(dir, name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Truncate(int64(len(b)) + 1)
	}
	return errors.Join(err, f.Close())
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
