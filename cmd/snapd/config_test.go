package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func load(t *testing.T, text string) (Config, error) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "snapd.toml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := LoadConfig(name)
	if err == nil {
		err = c.Validate()
	}
	return c, err
}

func TestConfigOverDefaults(t *testing.T) {
	c, err := load(t, "root = '/srv/s'\n[registry]\nstall_timeout = '3s'\nplain_http = ['r:5000']\n[pull]\ncomplete = false\n")
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultConfig()
	want.Root = "/srv/s"
	if c.Root != want.Root || c.Run != want.Run || time.Duration(c.Registry.StallTimeout) != 3*time.Second || c.Pull.Complete || c.Registry.PlainHTTP[0] != "r:5000" {
		t.Errorf("LoadConfig = %+v", c)
	}
}

func TestConfigErrorsNameTheSetting(t *testing.T) {
	for text, want := range map[string]string{
		"rot = '/x'":                     "unknown key rot (line 1)",
		"[log]\nlevel = 'info'\nlvl = 1": "unknown key log.lvl (line 3)",
		"root = 7":                       "line 1",
		"root = ":                        "line 1",
		"root = 'relative'":              "root = ",
		"root = '/'":                     "root = ",
		"root = '/a'\nrun = '/a/run'":    "neither may hold",
		"run = '/" + strings.Repeat("x", 80) + "'":                     "run = ",
		"cgroup_parent = 'x'":                                          "cgroup_parent",
		"cgroup_parent = '/a/../b'":                                    "cgroup_parent",
		"keeper_cgroup = 'x'":                                          "keeper_cgroup",
		"keeper_cgroup = '/'":                                          "keeper_cgroup",
		"keeper_cgroup = '/a/../b'":                                    "keeper_cgroup",
		"[log]\nlevel = 'loud'":                                        "log.level",
		"[pool]\nsize = -1":                                            "pool.size",
		"[pool]\nsize = 257":                                           "pool.size",
		"[log]\nformat = 'xml'":                                        "log.format",
		"[registry]\nstall_timeout = '-1s'":                            "registry.stall_timeout",
		"[index]\ntrust = 'me'":                                        "index.trust",
		"[index]\nsign_key = '/k'":                                     "index.publish",
		"[pull]\nbandwidth = '1KiB/s'":                                 "pull.bandwidth",
		"[credentials]\nprovider_config = '/x'":                        "provider_bin",
		"[credentials]\nprovider_config = 'x'\nprovider_bin = '/b'":    "credentials.provider_config",
		"[credentials]\nprovider_timeout = '2m'":                       "credentials.provider_timeout",
		"[metrics]\naddress = '0.0.0.0:1'":                             "metrics.address",
		"[metrics]\naddress = '127.0.0.1'":                             "HOST:PORT",
		"[metrics]\nremote = true":                                     "metrics.remote",
		"[tracing]\nendpoint = '127.0.0.1:4318'":                       "tracing.endpoint",
		"[userns]\ndefault = 'keep-id'":                                "userns.default",
		"[userns]\ndefault = 'container:x'":                            "userns.default",
		"[userns]\nbase = 100000":                                      "want both",
		"[userns]\nbase = 1000\nsize = 65536":                          "userns.base",
		"[userns]\nbase = 4294967295\nsize = 2":                        "userns.base",
		"[userns]\nbase = 100000\nsize = 1000":                         "userns.range",
		"[userns]\nrange = 0":                                          "userns.range",
		"[cdi]\ndirs = ['cdi']":                                        "cdi.dirs",
		"[disk]\nlimit = 'much'":                                       "line 2",
		"[[containerd]]\nnam = 'x'":                                    "unknown key containerd.nam",
		"[[containerd]]\nname = 'A'":                                   "containerd.name",
		"[[containerd]]\nname = '../x'":                                "containerd.name",
		"[[containerd]]\n[[containerd]]":                               "two tables",
		"[[containerd]]\nsocket = 'x'":                                 "containerd.socket",
		"[[containerd]]\nsocket = '/a/../x'":                           "containerd.socket",
		"[[containerd]]\nsocket = '/" + strings.Repeat("x", 107) + "'": "containerd.socket",
		"[[containerd]]\nsocket = '/run/snapfs/snapd.sock'":            "another socket of snapd's",
		"[[containerd]]\nsocket = '/run/snapfs/keeper.sock'":           "one of snapd's",
		"[[containerd]]\nsocket = '/var/lib/snapfs/c.sock'":            "not belong into root",
		"[[containerd]]\nsocket = '/run/containerd/containerd.sock'":   "containerd's own",
		"[[containerd]]\naddress = 'tcp://x:1'":                        "containerd.address",
		"[[containerd]]\nname = 'a'\nsocket = '/s'\n[[containerd]]\nname = 'b'\nsocket = '/s'": "another socket of snapd's",
		strings.Repeat("[[containerd]]\n", 9):                                                  "at most 8",
		"[registry]\nconnect_timeout = '30'":                                                   "line 2",
		"[registry]\nstall_timeout = 'a fortnight'":                                            "line 2",
	} {
		if _, err := load(t, text); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("config %q: %v, want one line with %q", text, err, want)
		}
	}
}

func TestContainerds(t *testing.T) {
	const own = "/run/containerd/containerd.sock"
	for text, want := range map[string][]ContainerdConfig{
		"":                {{"default", "/run/snapfs/containerd.sock", own, false, ""}},
		"containerd = []": {},
		"run = '/r'":      {{"default", "/r/containerd.sock", own, false, ""}},
		"[[containerd]]":  {{"default", "/run/snapfs/containerd.sock", own, false, ""}},
		"[[containerd]]\nname = 'k3s'\naddress = '/run/k3s/containerd/containerd.sock'\ncri = true\n[[containerd]]\nsocket = '/run/x/y.sock'": {
			{"k3s", "/run/snapfs/containerd-k3s.sock", "/run/k3s/containerd/containerd.sock", true, ""}, {"default", "/run/x/y.sock", own, false, ""},
		},
	} {
		c, err := load(t, text)
		if got := c.containerds(); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %+v, %v, want %+v", text, got, err, want)
		}
		if got := c.sockets(); len(got) != len(want) {
			t.Errorf("%q: sockets %q", text, got)
		}
	}
}

func TestContentDirs(t *testing.T) {
	for text, ok := range map[string]bool{
		"content = '/var/lib/containerd/io.containerd.content.v1.content'": true,
		"content = '/a'\n[[containerd]]\nname = 'b'\ncontent = '/ab'":      true,
		"content = '/a'\n[[containerd]]\nname = 'b'\ncontent = '/a/b'":     false,
		"content = '/a'\n[[containerd]]\nname = 'b'\ncontent = '/a'":       false,
		"content = 'a'":                   false,
		"content = '/a/../b'":             false,
		"content = '/'":                   false,
		"content = '/var/lib/snapfs/x'":   false,
		"content = '/var/lib'":            false,
		"content = '/run/snapfs/content'": false,
	} {
		c, err := load(t, "[[containerd]]\n"+text)
		if err == nil {
			err = c.Validate()
		}
		if (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestMissingConfigFile(t *testing.T) {
	if _, err := LoadConfig(filepath.Join(t.TempDir(), "none")); !os.IsNotExist(err) {
		t.Errorf("LoadConfig of a missing file: %v", err)
	}
}

func FuzzConfig(f *testing.F) {
	f.Add("root = '/x'\n[log]\nlevel = 'debug'")
	f.Fuzz(func(t *testing.T, text string) {
		if c, err := load(t, text); err == nil && (c.Root == "" || c.Run == "") {
			t.Errorf("config %q: accepted without directories", text)
		}
	})
}
