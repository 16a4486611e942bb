package main

import (
	"bytes"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unicode"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime/monitor"
)

func TestParseBytes(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "1024b": 1024, "4k": 4096, "512m": 512 << 20, "2G": 2 << 30, "1.5g": 3 << 29, "64MiB": 64 << 20, "10kb": 10240, "1t": 1 << 40, "3 m": 3 << 20,
		"": -1, "m": -1, "-1": -1, "1x": -1, "1kk": -1, "1.2.3": -1, "9999999p": -1, "0x10": -1, "1e9": -1, "mib": -1,
	} {
		n, err := parseBytes(text)
		if want < 0 && err == nil || want >= 0 && (err != nil || n != want) {
			t.Errorf("parseBytes(%q) = %d, %v, want %d", text, n, err, want)
		}
	}
}

func TestParseCPUs(t *testing.T) {
	for text, want := range map[string]int64{
		"1": 1e9, "0.5": 5e8, ".5": 5e8, "0.29": 29e7, "1.": 1e9, "128": 128e9, "0.000000001": 1,
		"": -1, ".": -1, "-1": -1, "1e3": -1, "0.0000000001": -1, "1.2.3": -1, "9999999": -1, "+1": -1,
	} {
		n, err := parseCPUs(text)
		if want < 0 && err == nil || want >= 0 && (err != nil || n != want) {
			t.Errorf("parseCPUs(%q) = %d, %v, want %d", text, n, err, want)
		}
	}
}

func TestParseUlimit(t *testing.T) {
	for text, want := range map[string]*control.Ulimit{
		"nofile=1024":      {Name: "nofile", Soft: 1024, Hard: 1024},
		"nofile=1024:4096": {Name: "nofile", Soft: 1024, Hard: 4096},
		"core=-1":          {Name: "core", Soft: -1, Hard: -1},
		"core=0:unlimited": {Name: "core", Soft: 0, Hard: -1},
		"nofile":           nil, "nofile=": nil, "nope=1": nil, "nofile=2:1": nil, "nofile=-1:5": nil, "nofile=1:2:3": nil, "nofile=-2": nil,
	} {
		u, err := parseUlimit(text)
		if want == nil && err == nil || want != nil && (err != nil || u != *want) {
			t.Errorf("parseUlimit(%q) = %+v, %v, want %+v", text, u, err, want)
		}
	}
}

func TestParseVolume(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]*control.MountSpec{
		"/a:/b":           {Type: "bind", Source: "/a", Target: "/b", Create: true},
		"/a/../c:/b:ro":   {Type: "bind", Source: "/c", Target: "/b", Create: true, ReadOnly: true},
		".:/b":            {Type: "bind", Source: here, Target: "/b", Create: true},
		"./x:/b:rw,z":     {Type: "bind", Source: filepath.Join(here, "x"), Target: "/b", Create: true},
		"/a:/b:ro,rslave": {Type: "bind", Source: "/a", Target: "/b", Create: true, ReadOnly: true, Options: []string{"rslave"}},
		"/a:/b:idmap":     {Type: "bind", Source: "/a", Target: "/b", Create: true, Options: []string{"idmap"}},
		"/a":              nil, "name:/b": nil, "/a:b": nil, "/a:/": nil, ":/b": nil, "/a:": nil, "/a:/b:ro:x": nil, "/a:/b:nope": nil, "/a:/b:": nil,
	} {
		m, err := parseVolume(text)
		if want == nil && err == nil || want != nil && (err != nil || !reflect.DeepEqual(m, *want)) {
			t.Errorf("parseVolume(%q) = %+v, %v, want %+v", text, m, err, want)
		}
	}
}

func TestParseMount(t *testing.T) {
	for text, want := range map[string]*control.MountSpec{
		"type=bind,source=/a,target=/b":                                {Type: "bind", Source: "/a", Target: "/b"},
		"type=bind,src=/a,dst=/b,readonly":                             {Type: "bind", Source: "/a", Target: "/b", ReadOnly: true},
		"type=bind,src=/a,destination=/b,ro=false":                     {Type: "bind", Source: "/a", Target: "/b"},
		"type=bind,src=/a,dst=/b,bind-propagation=rshared":             {Type: "bind", Source: "/a", Target: "/b", Options: []string{"rshared"}},
		"type=tmpfs,target=/t":                                         {Type: "tmpfs", Target: "/t"},
		"type=tmpfs,target=/t,tmpfs-size=64m,tmpfs-mode=1777,readonly": {Type: "tmpfs", Target: "/t", ReadOnly: true, Options: []string{"size=67108864", "mode=1777"}},
		"type=bind,src=/a,dst=/b,ridmap":                               {Type: "bind", Source: "/a", Target: "/b", Options: []string{"ridmap"}},
		"type=bind,src=/a,dst=/b,idmap=uids=0-1-2":                     nil,
		"type=tmpfs,dst=/b,idmap":                                      nil,
		"":                                                             nil,
		"source=/a,target=/b":                                          nil, // a volume
		"type=bind,source=/a":                                          nil,
		"type=bind,target=/b":                                          nil,
		"type=npipe,target=/b":                                         nil,
		"type=bind,source=/a,target=/b,nope=1":                         nil,
		"type=bind,source=/a,target=/b,ro=x":                           nil,
		"type=bind,source=/a,target=/b,tmpfs-size=1m":                  nil,
		"type=bind,source=/a,target=/b,bind-propagation=no":            nil,
		"type=tmpfs,source=/a,target=/b":                               nil,
		"type=tmpfs,target=/b,tmpfs-mode=9":                            nil,
		"type=tmpfs,target=/b,tmpfs-size=x":                            nil,
	} {
		m, err := parseMount(text)
		if want == nil && err == nil || want != nil && (err != nil || !reflect.DeepEqual(m, *want)) {
			t.Errorf("parseMount(%q) = %+v, %v, want %+v", text, m, err, want)
		}
	}
}

func TestParseEnvFile(t *testing.T) {
	getenv := func(name string) (string, bool) { return "from here", name == "HERE" }
	text := "\ufeff# comment\n\n A=1\nB=two words # not a comment\nHERE\nNOT_HERE\nC=\n"
	got, err := parseEnvFile([]byte(text), getenv)
	if want := []string{"A=1", "B=two words # not a comment", "HERE=from here", "C="}; err != nil || !slices.Equal(got, want) {
		t.Errorf("parseEnvFile = %q, %v, want %q", got, err, want)
	}
	for _, text := range []string{"A B=1", "=1", "A=\xff", "A=\x00", "A=" + strings.Repeat("x", 2<<20)} {
		if env, err := parseEnvFile([]byte("OK=1\n"+text), getenv); err == nil {
			t.Errorf("parseEnvFile(%.20q) = %.20q", text, env)
		}
	}
}

func TestParseGPUs(t *testing.T) {
	for s, want := range map[string]string{
		"all": "nvidia.com/gpu=all", "count=all": "nvidia.com/gpu=all", "2": "nvidia.com/gpu=0 nvidia.com/gpu=1", "count=1": "nvidia.com/gpu=0",
		"device=3": "nvidia.com/gpu=3", `"device=0,GPU-1a"`: "nvidia.com/gpu=0 nvidia.com/gpu=GPU-1a",
		"": "", "0": "", "-1": "", "device=": "", "device=a=b": "", "driver=nvidia": "", "1,2": "",
	} {
		names, err := parseGPUs(s)
		if got := strings.Join(names, " "); got != want || (err == nil) != (want != "") {
			t.Errorf("parseGPUs(%q) = %q, %v; want %q", s, got, err, want)
		}
	}
	for s, want := range map[string]bool{"vendor.com/class=name": true, "v/c=a=b": true, "/dev/a=b": false, "a=b": false, "v/c=": false, "v/c": false} {
		if isDescribed(s) != want {
			t.Errorf("isDescribed(%q) = %v", s, !want)
		}
	}
}

func TestParseDetachKeys(t *testing.T) {
	for text, want := range map[string]string{
		"ctrl-p,ctrl-q": "\x10\x11", "a": "a", "ctrl-@": "\x00", "ctrl-[,x": "\x1bx", "ctrl-_": "\x1f", "": "",
	} {
		if keys, err := parseDetachKeys(text); err != nil || string(keys) != want {
			t.Errorf("parseDetachKeys(%q) = %q, %v, want %q", text, keys, err, want)
		}
	}
	for _, text := range []string{"ctrl-", "ctrl-1", "ctrl-P", "ab", ","} {
		if keys, err := parseDetachKeys(text); err == nil {
			t.Errorf("parseDetachKeys(%q) = %q", text, keys)
		}
	}
}

func TestParseTime(t *testing.T) {
	at := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"10m": at.Add(-10 * time.Minute), "1790000000": time.Unix(1790000000, 0), "2026-11-24T10:00:00Z": at.Add(-2 * time.Hour),
	} {
		if got, err := parseTime(text, at); err != nil || !got.Equal(want) {
			t.Errorf("parseTime(%q) = %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "yesterday", "-5", "2026-13-01"} {
		if got, err := parseTime(text, at); err == nil {
			t.Errorf("parseTime(%q) = %v", text, got)
		}
	}
}

func TestSecurityOpt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p.json")
	if err := os.WriteFile(path, []byte(`{"x":1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{
		"seccomp=unconfined": "seccomp=unconfined", "no-new-privileges": "no-new-privileges", "seccomp=" + path: `seccomp={"x":1}`, "seccomp:" + path: `seccomp={"x":1}`,
	} {
		if got, err := securityOpt(in); err != nil || got != want {
			t.Errorf("securityOpt(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
	if got, err := securityOpt("seccomp=/nonexistent"); err == nil {
		t.Errorf("securityOpt of a missing profile = %q", got)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"512m", "1.5", "nofile=1:2", "/a:/b:ro", "type=tmpfs,target=/t,tmpfs-size=1m", "A=1\n#x\nB", "ctrl-p,ctrl-q", "2026-11-24T10:00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseBytes(s); err == nil && (n < 0 || n > math.MaxInt64/2+1) {
			t.Errorf("parseBytes(%q) = %d", s, n)
		}
		if n, err := parseCPUs(s); err == nil && n < 0 {
			t.Errorf("parseCPUs(%q) = %d", s, n)
		}
		if u, err := parseUlimit(s); err == nil && (u.Soft < -1 || u.Hard < -1 || uint64(u.Soft) > uint64(u.Hard)) {
			t.Errorf("parseUlimit(%q) = %+v", s, u)
		}
		for name, parse := range map[string]func(string) (control.MountSpec, error){"parseVolume": parseVolume, "parseMount": parseMount} {
			if m, err := parse(s); err == nil && (!filepath.IsAbs(m.Target) || m.Type == "bind" && !filepath.IsAbs(m.Source)) {
				t.Errorf("%s(%q) = %+v", name, s, m)
			}
		}
		if env, err := parseEnvFile([]byte(s), func(string) (string, bool) { return "", false }); err == nil {
			for _, kv := range env {
				if name, _, ok := strings.Cut(kv, "="); !ok || name == "" || strings.ContainsRune(kv, 0) {
					t.Errorf("parseEnvFile(%q) has %q", s, kv)
				}
			}
		}
		if d, err := parseDevice(s); err == nil && (!filepath.IsAbs(d.Host) || !filepath.IsAbs(d.Inside) || d.Access == "" || strings.Trim(d.Access, "rwm") != "") {
			t.Errorf("parseDevice(%q) = %+v", s, d)
		}
		if kv, ok, err := parseEnv(s, func(string) (string, bool) { return "", false }); err == nil && ok && (kv != s || !strings.Contains(kv, "=")) {
			t.Errorf("parseEnv(%q) = %q", s, kv)
		}
		var a control.CreateArgs
		if err := parseLogOpt(s, &a); err == nil && (a.LogMaxSize < 0 || a.LogMaxFiles < 0 || a.LogMaxFiles > monitor.MaxLogFiles) {
			t.Errorf("parseLogOpt(%q) = %d, %d", s, a.LogMaxSize, a.LogMaxFiles)
		}
		if strings.ContainsFunc(plainText(s), func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) {
			t.Errorf("plainText(%q)", s)
		}
		parseDetachKeys(s)
		parseTime(s, time.Unix(0, 0))
		(&logReader{out: &strings.Builder{}, err: &strings.Builder{}}).line([]byte(s))
	})
}

// FuzzFlags: whatever is on the command line of run, it is understood or one line says why not.
func FuzzFlags(f *testing.F) {
	for _, s := range []string{"-it|--rm|x|sh", "-p80|--publish=8080:80/udp|x", "--memory|512m|-eA=b|--|x|-y", "-vv", "--=x", "-m=", "--tty=maybe|x", "-|x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if strings.Contains(s, "file") || strings.Contains(s, "seccomp") {
			return // what they name is read
		}
		var a control.CreateArgs
		set := &flagSet{usage: "run"}
		createFlags(set, &a)
		args := strings.Split(s, "|")
		rest, err := set.parseArgs(args, false)
		if err == nil && len(rest) > len(args) {
			t.Errorf("%q became %q", args, rest)
		}
	})
}

// FuzzDetach: how what is typed is cut into reads changes nothing, and without the keys all of it comes through.
func FuzzDetach(f *testing.F) {
	f.Add([]byte("a\x10\x11b"), []byte{0x10, 0x11})
	f.Add([]byte("aab"), []byte("aa"))
	f.Fuzz(func(t *testing.T, in, keys []byte) {
		if len(keys) == 0 || len(keys) > 64 {
			return
		}
		read := func(r io.Reader) (string, bool) {
			detached := false
			b, err := io.ReadAll(&detachReader{r: r, keys: keys, detach: func() { detached = true }})
			if err != nil {
				t.Fatal(err)
			}
			return string(b), detached
		}
		once, detached := read(bytes.NewReader(in))
		if one, d := read(iotest.OneByteReader(bytes.NewReader(in))); one != once || d != detached {
			t.Errorf("%q, %q: %q, %t at once, and %q, %t byte by byte", in, keys, once, detached, one, d)
		}
		if !detached && once != string(in) || !strings.HasPrefix(string(in), once) {
			t.Errorf("%q, %q: %q", in, keys, once)
		}
	})
}
