package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReloadable(t *testing.T) {
	name := filepath.Join(t.TempDir(), "snapd.toml")
	args := []string{"--config", name, "--log-level", "warn"}
	write := func(text string) {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("root = '/r'\nrun = '/s'")
	c, _, err := parse(args, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"root = '/r'\nrun = '/s'": "",
		"root = '/r'\nrun = '/s'\n[log]\nlevel = 'debug'\n[registry]\nstall_timeout='3s'": "",
		"root = '/r'\nrun = '/s'\n[[containerd]]\ncri = true":                             "",
		"root = '/r'\nrun = '/t'":                               " has changed",
		"root = '/q'\nrun = '/s'":                               "root has changed",
		"root = '/r'\nrun = '/s'\nrunner = '/x'":                "runner has changed",
		"root = '/r'\nrun = '/s'\n[[containerd]]\nname = 'two'": "containerd.socket has changed",
		"root = '/r'\nrun = '/s'\n[log]\nformat = 'loud'":       "log.format",
		"root": "line 1",
	} {
		write(text)
		if err := c.reloadable(args); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
