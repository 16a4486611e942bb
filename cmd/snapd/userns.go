package main

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/snapfs/snapfs/internal/containers"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/userns"
)

// UsernsConfig says which users of the machine containers have: docs/userns.md.
type UsernsConfig struct {
	// Default is the user namespace of containers that name none, as --userns has it:
	// host, auto, or auto with options. Default host, as Docker's.
	Default string `toml:"default"`
	// Base is the first of the users, and of the groups, that containers' ranges come
	// from. Default 0: the entry snapfs of /etc/subuid and /etc/subgid, or without
	// one 1879048192, which leaves those alone that useradd, the kubelet and systemd give out. Two
	// daemons on one machine need two.
	Base uint32 `toml:"base"`
	// Size is how many there are from Base on. Default 0: those of the entry, or 268304384.
	Size uint32 `toml:"size"`
	// Range is how many a container gets that does not say. Default 65536, so that nobody (65534) is one of them.
	Range uint32 `toml:"range"`
}

func (c UsernsConfig) validate() error {
	if q, err := userns.Parse(c.Default); err != nil || q.Of != "" {
		return fmt.Errorf("userns.default = %q: want host, or auto with or without options", c.Default)
	}
	switch {
	case (c.Base == 0) != (c.Size == 0):
		return fmt.Errorf("userns.base = %d and userns.size = %d: want both, or none", c.Base, c.Size)
	case c.Range == 0:
		return fmt.Errorf("userns.range = 0: want the number of users that a container has, such as %d", userns.DefaultSize)
	case c.Base == 0:
		return nil
	}
	if err := c.configured().Check(); err != nil {
		return fmt.Errorf("userns.base = %d, userns.size = %d: %w", c.Base, c.Size, err)
	}
	if c.Range > c.Size {
		return fmt.Errorf("userns.range = %d: more than the %d of userns.size", c.Range, c.Size)
	}
	return nil
}

func (c UsernsConfig) configured() userns.Pool {
	return userns.Pool{IDRange: control.IDRange{UID: c.Base, GID: c.Base, Size: c.Size}, From: "userns.base and userns.size in snapd's configuration"}
}

func (c UsernsConfig) options(ns containers.UserNamespaces, log *slog.Logger) containers.UserOptions {
	return containers.UserOptions{Make: ns, Default: c.Default, Range: c.Range, Pool: c.pool("/etc/subuid", "/etc/subgid", log)}
}

// pool is what ranges come from. Files that cannot be read have no entry.
func (c UsernsConfig) pool(subuid, subgid string, log *slog.Logger) userns.Pool {
	u, _ := os.ReadFile(subuid)
	g, _ := os.ReadFile(subgid)
	p := c.choose(u, g, log)
	for _, x := range []struct {
		file  string
		text  []byte
		first uint32
	}{{subuid, u, p.UID}, {subgid, g, p.GID}} {
		if name, ok := userns.Claimed(x.text, x.first, p.Size); ok {
			log.Warn("users for containers: another entry has some of them, too, so --userns auto keeps containers from each other, but not from that", "file", x.file, "entry", name, "pool", p.From)
		}
	}
	return p
}

func (c UsernsConfig) choose(subuid, subgid []byte, log *slog.Logger) userns.Pool {
	if c.Base != 0 {
		return c.configured()
	}
	p, ok := userns.Subordinate(subuid, subgid)
	if !ok {
		return userns.Default
	}
	if err := p.Check(); err != nil {
		log.Warn("users for containers: "+userns.Owner+" in /etc/subuid and /etc/subgid is not used", "err", err)
		return userns.Default
	}
	return p
}
