package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/userns"
)

// TestPool: what is configured goes before /etc/subuid's entry, and that before the default.
func TestPool(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, low, none := file("good", "snapfs:200000:131072\n"), file("low", "snapfs:1000:131072\n"), filepath.Join(dir, "none")
	for name, row := range map[string]struct {
		c        UsernsConfig
		uid, gid string
		want     control.IDRange
	}{
		"nothing":    {UsernsConfig{}, none, none, userns.Default.IDRange},
		"an entry":   {UsernsConfig{}, good, good, control.IDRange{UID: 200000, GID: 200000, Size: 131072}},
		"half of it": {UsernsConfig{}, good, none, userns.Default.IDRange},
		"too low":    {UsernsConfig{}, good, low, userns.Default.IDRange},
		"configured": {UsernsConfig{Base: 300000, Size: 5}, good, good, control.IDRange{UID: 300000, GID: 300000, Size: 5}},
	} {
		if got := row.c.pool(row.uid, row.gid, slog.New(slog.DiscardHandler)); got.IDRange != row.want || got.From == "" {
			t.Errorf("%s: %v, want %v", name, got, row.want)
		}
	}
}
