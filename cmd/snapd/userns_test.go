package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
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
	others := file("others", "snapfs\nalice:300004:65536\nsnapfs::\n")
	for name, row := range map[string]struct {
		c        UsernsConfig
		uid, gid string
		want     control.IDRange
		says     string
	}{
		"nothing":    {UsernsConfig{}, none, none, userns.Default.IDRange, ""},
		"an entry":   {UsernsConfig{}, good, good, control.IDRange{UID: 200000, GID: 200000, Size: 131072}, ""},
		"half of it": {UsernsConfig{}, good, none, userns.Default.IDRange, ""},
		"too low":    {UsernsConfig{}, good, low, userns.Default.IDRange, "is not used"},
		"configured": {UsernsConfig{Base: 300000, Size: 5}, good, good, control.IDRange{UID: 300000, GID: 300000, Size: 5}, ""},
		"another's":  {UsernsConfig{Base: 300000, Size: 5}, others, none, control.IDRange{UID: 300000, GID: 300000, Size: 5}, "entry=alice"},
		"far away":   {UsernsConfig{}, others, others, userns.Default.IDRange, ""},
	} {
		var says strings.Builder
		if got := row.c.pool(row.uid, row.gid, slog.New(slog.NewTextHandler(&says, nil))); got.IDRange != row.want || got.From == "" {
			t.Errorf("%s: %v, want %v", name, got, row.want)
		}
		if (row.says == "") != (says.String() == "") || !strings.Contains(says.String(), row.says) {
			t.Errorf("%s: it says %q, want %q", name, says.String(), row.says)
		}
	}
}
