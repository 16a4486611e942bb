package main

import (
	"fmt"
	"path/filepath"
)

// CDIConfig says which devices have names.
type CDIConfig struct {
	// Dirs hold files of the Container Device Interface, which describe devices; a
	// later one wins. Only root may be able to write them: what they say is
	// done as root. Default /etc/cdi, /var/run/cdi, where vendors' tools write them.
	Dirs []string `toml:"dirs"`
}

func (c CDIConfig) validate() error {
	for _, dir := range c.Dirs {
		if !filepath.IsAbs(dir) {
			return fmt.Errorf("cdi.dirs: %q: want an absolute path", dir)
		}
	}
	return nil
}
