package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/snapfs/snapfs/internal/node"
)

// program writes a program that stands for containerd: it says its version, and
// takes any configuration that does not say bad.
func program(t *testing.T, version string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "containerd")
	script := "#!/bin/sh\ncase \"$1\" in\n--version) echo containerd x " + version + ";;\n--config) if grep -q bad \"$2\"; then echo 'it is bad' >&2; exit 1; fi; cat \"$2\";;\nesac\n"
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestNodeConfig(t *testing.T) {
	dir := t.TempDir()
	file, snapd := filepath.Join(dir, "config.toml"), filepath.Join(dir, "snapd.toml")
	if err := os.WriteFile(snapd, []byte("root = '"+dir+"/root'\nrun = '/run/x'\n[[containerd]]\n[[containerd]]\nname = 'second'\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	call := func(status int, args ...string) string {
		t.Helper()
		var stdout, stderr bytes.Buffer
		args = append([]string{"containerd"}, append(args, "--snapd-config", snapd)...)
		if got := run(args, &stdout, &stderr); got != status {
			t.Errorf("snapd %v: status %d, want %d: %s", args, got, status, &stderr)
		}
		return stdout.String() + stderr.String()
	}
	has := func(out string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("no %q in\n%s", w, out)
			}
		}
	}
	new, old := program(t, "2.4.2"), program(t, "1.7.35")
	has(call(0, "config", "--containerd", new, "--config", file), "version = 4", "'/run/x/containerd.sock'", "'rebase'", "root = '"+dir+"/root'")
	has(call(0, "config", "--containerd", old, "--entry", "second", "--name", "other"), "version = 2", "'/run/x/containerd-second.sock'", "[proxy_plugins.other]")
	has(call(0, "config", "--containerd-version", "2.0.1", "--containerd", "/none", "--cri"), "version = 3", "disable_snapshot_annotations = false")
	if _, err := os.Stat(file); err == nil {
		t.Error("the file was written without --write")
	}

	write := []string{"config", "--write", "--containerd", new, "--config", file}
	has(call(0, write...), "is changed; restart containerd")
	has(call(0, write...), "says all that is needed")
	has(call(0, append(write, "--content")...), "is changed", "is kept as "+file+".")
	own := filepath.Join(dir, "ctd", "io.containerd.content.v1.content", "blobs", "sha256")
	if err := os.MkdirAll(own, 0o755); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"is changed", "own content store has 1 blobs"} {
		if err := os.WriteFile(file, []byte("version = 4\nroot = '"+dir+"/ctd'\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		out := call(0, append(write, "--content")...)
		has(out, want)
		if i == 0 && strings.Contains(out, "own content") {
			t.Errorf("of an empty store it says\n%s", out)
		}
		if err := os.WriteFile(filepath.Join(own, "0"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(file, []byte("version = 4\nroot = 'bad'\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	has(call(1, write...), "containerd does not take", "it is bad")
	if err := os.WriteFile(file, []byte("root = '/x'\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	has(call(1, write...), file+": line 1: configuration version 0")
	has(call(1, "config", "--containerd", filepath.Join(dir, "none")), "say with --containerd where it is")
	has(call(2, "config", "--entry", "third"), `no [[containerd]] with name = "third"`)
	has(call(2, "say"), `"say": want config or check`)
	has(call(2), "want config or check")
	has(call(2, "config", "more"), "unexpected argument")
	has(call(2, "config", "--none"), "none")
	has(call(0, "--help"), "usage: snapctl containerd", "-write")

	out := call(1, "check", "--json", "--containerd", filepath.Join(dir, "none"))
	var all []node.Finding
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all) == 0 || all[len(all)-1].Level != node.Fail {
		t.Errorf("check --json: %v\n%s", err, out)
	}
	has(call(1, "check", "--containerd", filepath.Join(dir, "none")), "FAIL  no containerd", "      → say with --containerd where it is")
}

func TestTail(t *testing.T) {
	w := tail{max: 4}
	for _, s := range []string{"ab", "cdef", "", "g"} {
		if n, err := w.Write([]byte(s)); n != len(s) || err != nil {
			t.Errorf("Write(%q) = %d, %v", s, n, err)
		}
	}
	if w.String() != "defg" {
		t.Errorf("the tail is %q", w.String())
	}
}
