package node

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/platforms"
	"github.com/pelletier/go-toml/v2"
)

func opts(version string) Options {
	v, err := ParseVersion(version)
	if err != nil {
		panic(err)
	}
	return Options{Version: v, Socket: "/run/snapfs/containerd.sock", Root: "/var/lib/snapfs", CRI: true, Content: true}
}

func TestParseVersion(t *testing.T) {
	for s, want := range map[string]string{
		"containerd github.com/containerd/containerd/v2 2.4.2+unknown \n":                              "2.4.2",
		"containerd github.com/containerd/containerd v1.7.35 0123456789012345678901234567890123456789": "1.7.35",
		"containerd github.com/containerd/containerd/v2 v2.4.0-beta.0 abc":                             "2.4.0",
		"containerd containerd.io 1.7.24-1~deb12u1 1.7.24":                                             "1.7.24",
		"v2.1.0": "2.1.0",
		"containerd github.com/containerd/containerd/v2": "",
		"containerd 99999.1.2":                           "",
		"":                                               "",
	} {
		v, err := ParseVersion(s)
		if got := v.String(); err == nil && got != want || err != nil && want != "" {
			t.Errorf("ParseVersion(%q) = %v, %v; want %s", s, v, err, want)
		}
	}
}

func data(t *testing.T, text []byte) map[string]any {
	t.Helper()
	m := map[string]any{}
	if err := toml.Unmarshal(text, &m); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return m
}

// TestStanza: what is written for each containerd.
func TestStanza(t *testing.T) {
	for version, want := range map[string]string{
		"1.7.35": `version = 2
disabled_plugins = ['io.containerd.content.v1.content']

BEGIN
[plugins.'io.containerd.grpc.v1.cri'.containerd]
  snapshotter = 'snapfs'
  disable_snapshot_annotations = false

[proxy_plugins.snapfs]
  type = 'snapshot'
  address = '/run/snapfs/containerd.sock'
  capabilities = ['remap-ids']
  [proxy_plugins.snapfs.exports]
    root = '/var/lib/snapfs'
    enable_remote_snapshot_annotations = 'true'

[proxy_plugins.snapfs-content]
  type = 'content'
  address = '/run/snapfs/containerd.sock'

[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = 'PLATFORM'
  snapshotter = 'overlayfs'
  differ = 'walking'

[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = 'PLATFORM'
  snapshotter = 'snapfs'
  differ = 'walking'
END
`,
		"2.0.14": "version = 3\n…\n[plugins.'io.containerd.cri.v1.images']\n  snapshotter = 'snapfs'\n  disable_snapshot_annotations = false\n\n[proxy_plugins.snapfs]…  capabilities = ['remap-ids']\n…",
		"2.2.9":  "version = 3\n…\n[plugins.'io.containerd.cri.v1.images']\n  snapshotter = 'snapfs'\n\n[proxy_plugins.snapfs]…  capabilities = ['remap-ids']\n…",
		"2.3.7":  "version = 4\n…\n[plugins.'io.containerd.cri.v1.images']\n  snapshotter = 'snapfs'\n\n[proxy_plugins.snapfs]…  capabilities = ['remap-ids']\n…",
		"2.4.2":  "version = 4\n…\n[plugins.'io.containerd.cri.v1.images']\n  snapshotter = 'snapfs'\n\n[proxy_plugins.snapfs]…  capabilities = ['rebase', 'remap-ids']\n…",
	} {
		got, err := Stanza(opts(version))
		if err != nil {
			t.Errorf("%s: %v", version, err)
			continue
		}
		want = strings.NewReplacer("PLATFORM", platforms.Format(platforms.DefaultSpec()), "BEGIN", beginMark, "END\n", endMark+"\n").Replace(want)
		rest := string(got)
		for i, part := range strings.Split(want, "…") {
			at := strings.Index(rest, part)
			if at < 0 || i == 0 && at != 0 {
				t.Errorf("%s: got\n%s\nwant in it\n%s", version, got, part)
				break
			}
			rest = rest[at+len(part):]
		}
	}
	if _, err := Stanza(opts("1.6.20")); err == nil {
		t.Error("there is a stanza for containerd 1.6")
	}
	plain := opts("2.4.2")
	plain.CRI, plain.Content = false, false
	got, err := Stanza(plain)
	if err != nil || bytes.Contains(got, []byte("cri")) || bytes.Contains(got, []byte("content")) {
		t.Errorf("without CRI and content: %v\n%s", err, got)
	}
}

// dumps are what containerd itself writes, whole configurations of several versions.
func dumps(t *testing.T) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob("testdata/default-*.toml")
	if err != nil || len(files) != 5 {
		t.Fatalf("dumps: %v, %v", files, err)
	}
	m := map[string][]byte{}
	for _, f := range files {
		if m[strings.TrimSuffix(strings.TrimPrefix(f, "testdata/default-"), ".toml")], err = os.ReadFile(f); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// TestMergeDumps: a whole configuration of each version is changed in few lines,
// and a second time in none.
func TestMergeDumps(t *testing.T) {
	for version, old := range dumps(t) {
		t.Run(version, func(t *testing.T) {
			o := opts(version)
			got, err := Merge(old, nil, o)
			if err != nil {
				t.Fatal(err)
			}
			again, err := Merge(got, nil, o)
			if err != nil || !bytes.Equal(again, got) {
				t.Errorf("the second time: %v\n%s", err, diff(got, again))
			}
			removed, added := lines(old, got)
			if len(removed) > 3 { // snapshotter, disable_snapshot_annotations, disabled_plugins
				t.Errorf("these lines are gone: %q", removed)
			}
			if len(added) > 40 {
				t.Errorf("%d lines are new", len(added))
			}
			m := data(t, got)
			if s := get(m, append(images(int(m["version"].(int64))), "snapshotter")...); s != "snapfs" {
				t.Errorf("CRI's snapshotter is %v", s)
			}
			if d := m["disabled_plugins"]; !reflect.DeepEqual(d, []any{"io.containerd.content.v1.content"}) {
				t.Errorf("disabled_plugins = %v", d)
			}
			var unpacks []any
			for _, u := range get(m, unpackPath...).([]any) {
				unpacks = append(unpacks, u.(map[string]any)["snapshotter"])
			}
			want := []any{"overlayfs", "snapfs"}
			if o.Version.atLeast(2, 3) {
				want = []any{"overlayfs", "erofs", "snapfs"}
			}
			if !reflect.DeepEqual(unpacks, want) {
				t.Errorf("unpacks for %v", unpacks)
			}
			// Without CRI, without content: what was made before goes.
			o.CRI, o.Content = false, false
			less, err := Merge(got, nil, o)
			if err != nil {
				t.Fatal(err)
			}
			if get(data(t, less), "proxy_plugins", "snapfs-content") != nil {
				t.Error("the content plugin is left")
			}
		})
	}
}

// lines returns the lines of old that new lacks, and the other way round.
func lines(old, new []byte) (removed, added []string) {
	count := map[string]int{}
	for l := range strings.Lines(string(old)) {
		count[l]++
	}
	for l := range strings.Lines(string(new)) {
		if count[l]--; count[l] < 0 {
			added = append(added, l)
		}
	}
	for l, n := range count {
		if n > 0 {
			removed = append(removed, l)
		}
	}
	return removed, added
}

func diff(old, new []byte) string {
	r, a := lines(old, new)
	return fmt.Sprintf("-%q\n+%q", r, a)
}

// TestMerge: files as people write them.
func TestMerge(t *testing.T) {
	const block = "BLOCK" // stands for what is between the marks
	for _, c := range []struct {
		name, version, old, want string
	}{
		{"comments stay", "2.4.2",
			"# ours\nversion = 3 # yes\n\n[plugins.\"io.containerd.cri.v1.images\"] # images\n\tsnapshotter = \"overlayfs\" # the usual\n\tmax_concurrent_downloads = 3\n",
			"# ours\nversion = 3 # yes\ndisabled_plugins = ['io.containerd.content.v1.content']\n\n[plugins.\"io.containerd.cri.v1.images\"] # images\n\tsnapshotter = 'snapfs' # the usual\n\tmax_concurrent_downloads = 3\n" + block},
		{"into a table", "2.4.2",
			"disabled_plugins = []\nversion = 3\n  [plugins.'io.containerd.cri.v1.images']\n    a = 1",
			"disabled_plugins = ['io.containerd.content.v1.content']\nversion = 3\n  [plugins.'io.containerd.cri.v1.images']\n    snapshotter = 'snapfs'\n    a = 1\n" + block},
		{"table without a line behind it", "2.4.2",
			"version = 3\ndisabled_plugins = [\n  'a.b', # one\n  'c.d', # two\n]\n[plugins.'io.containerd.cri.v1.images']",
			"version = 3\ndisabled_plugins = [\n  'a.b', # one\n  'c.d', 'io.containerd.content.v1.content', # two\n]\n[plugins.'io.containerd.cri.v1.images']\n  snapshotter = 'snapfs'\n" + block},
		{"old names", "1.7.35",
			"version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  snapshotter = \"overlayfs\"\n[plugins.\"io.containerd.transfer.v1.local\"]\n  config_path = '/x'\n",
			"version = 2\ndisabled_plugins = ['io.containerd.content.v1.content']\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  disable_snapshot_annotations = false\n  snapshotter = 'snapfs'\n[plugins.\"io.containerd.transfer.v1.local\"]\n  config_path = '/x'\n" + block},
		{"dotted keys that are in nobody's way", "2.4.2",
			"version = 3\nplugins.'io.containerd.gc.v1.scheduler'.x = 1\n[debug]\nlevel = 'info'\n",
			""},
		{"an older block elsewhere", "2.4.2",
			"version = 3\n# BEGIN snapfs: of long ago\n[proxy_plugins.snapfs]\nx = 1\n# END snapfs\n[debug]\n  level = 'info'\n",
			"version = 3\ndisabled_plugins = ['io.containerd.content.v1.content']\n[debug]\n  level = 'info'\n" + block},
		{"unpack_config that is empty", "2.4.2",
			"version = 3\n[plugins.'io.containerd.transfer.v1.local']\n  unpack_config = []\n",
			"version = 3\ndisabled_plugins = ['io.containerd.content.v1.content']\n[plugins.'io.containerd.transfer.v1.local']\n  unpack_config = [{platform = '" + platforms.Format(platforms.DefaultSpec()) + "', snapshotter = 'snapfs', differ = 'walking'}]\n" + block},
		{"the same set by hand", "2.4.2",
			"version = 3\nproxy_plugins.snapfs-content = {type='content', address='/run/snapfs/containerd.sock'}\n",
			""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Merge([]byte(c.old), nil, opts(c.version))
			if c.want == "" {
				if err == nil {
					if _, ok := get(data(t, got), "proxy_plugins", "snapfs").(map[string]any); !ok {
						t.Errorf("no snapshotter in\n%s", got)
					}
					return
				}
				if _, ok := err.(*LineError); !ok {
					t.Errorf("error without a line: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			text := string(got)
			if i := strings.Index(text, "\n"+beginMark); i >= 0 {
				text = text[:i] + block
			}
			if text != c.want {
				t.Errorf("got\n%s\nwant\n%s", text, c.want)
			}
			if again, err := Merge(got, nil, opts(c.version)); err != nil || !bytes.Equal(again, got) {
				t.Errorf("the second time: %v, %s", err, diff(got, again))
			}
		})
	}
}

// TestRefused: what cannot be changed safely, and where.
func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		old, version string
		line         int
		says         string
	}{
		"no version":       {"root = '/x'\n", "2.4.2", 1, "configuration version 0"},
		"Docker's":         {"# comment\ndisabled_plugins = [\"cri\"]\n", "1.7.35", 1, "configuration version 0"},
		"version 1":        {"\nversion = 1\n", "2.4.2", 2, "configuration version 1"},
		"too new":          {"version = 4\n", "2.2.9", 1, "reads up to 3"},
		"no TOML":          {"version = 3\n[a\n", "2.4.2", 2, ""},
		"one line":         {"version = 3\n\nplugins = {'io.containerd.cri.v1.images' = {snapshotter = 'x'}}\n", "2.4.2", 3, "in one line"},
		"dotted":           {"version = 3\n[plugins]\n'io.containerd.cri.v1.images'.a = 1\n", "2.4.2", 3, "dotted key"},
		"ours, otherwise":  {"version = 3\n[proxy_plugins]\n  [proxy_plugins.snapfs]\n    type = 'snapshot'\n    address = '/other.sock'\n", "2.4.2", 3, "other settings"},
		"array of tables":  {"version = 3\n[[plugins]]\n", "2.4.2", 2, "array of tables"},
		"no array":         {"version = 3\n[plugins.'io.containerd.transfer.v1.local']\nunpack_config = 3\n", "2.4.2", 3, "no array"},
		"inline array":     {"version = 3\n[plugins.'io.containerd.transfer.v1.local']\nunpack_config = [{snapshotter = 'x'}]\n", "2.4.2", 3, "in one line"},
		"block unfinished": {"version = 3\n# BEGIN snapfs\n[a]\n", "2.4.2", 2, "does not end"},
		"end alone":        {"version = 3\n# END snapfs\n", "2.4.2", 2, "has not begun"},
		"two blocks":       {"version = 3\n# BEGIN snapfs\n# BEGIN snapfs\n# END snapfs\n", "2.4.2", 3, "second block"},
		"huge":             {"#" + strings.Repeat("x", maxConfig), "2.4.2", 0, "longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Merge([]byte(c.old), nil, opts(c.version))
			e, ok := err.(*LineError)
			if !ok || e.Line != c.line || !strings.Contains(e.Error(), c.says) {
				t.Errorf("Merge: %v, want line %d and %q", err, c.line, c.says)
			}
		})
	}
}

// TestImports: imported files have the last word.
func TestImports(t *testing.T) {
	old := []byte("version = 3\nimports = ['conf.d/*.toml']\n")
	file := func(text string) []File { return []File{{"/etc/containerd/conf.d/x.toml", []byte(text)}} }
	for text, says := range map[string]string{
		"version = 3\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'nydus'\n": "conf.d/x.toml: line 3: plugins.'io.containerd.cri.v1.images'.snapshotter",
		"[proxy_plugins.snapfs]\ntype = 'snapshot'\naddress = '/other'\n":               "line 1: proxy_plugins.snapfs",
		"[": "conf.d/x.toml: line 1",
		"version = 3\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'snapfs'\n[debug]\nx = 1\n": "",
	} {
		_, err := Merge(old, file(text), opts("2.4.2"))
		if says == "" && err != nil || says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
			t.Errorf("with %q: %v, want %q", text, err, says)
		}
	}
}

// FuzzMerge: whatever a file holds, the merged one is TOML, what was set in it
// is as it was but for what was asked, and merging again changes nothing.
func FuzzMerge(f *testing.F) {
	for _, s := range []string{
		"", "version = 3", "version = 2\ndisabled_plugins = ['a', # b\n]\n", "version=3\r\n[plugins.'io.containerd.cri.v1.images']\r\n",
		"version = 3\n[a]\n[plugins]\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter='''\nx'''\n", "version = 3\n[[a.b]]\nc=[[1],{d=2}]\n",
		"version = 3\ndisabled_plugins = [[1]]\n", "version = 3\ndisabled_plugins = {a=1}\n", "version = 3\n\"a=b\" = 1\n",
		"version = 3\n# BEGIN snapfs\n# END snapfs", "x = '''\n# BEGIN snapfs\n# END snapfs\n'''\nversion = 3",
	} {
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, old []byte, all bool) {
		o := opts("2.4.2")
		o.CRI, o.Content = all, all
		got, err := Merge(old, nil, o)
		if err != nil {
			return
		}
		after := map[string]any{}
		if err := toml.Unmarshal(got, &after); err != nil {
			t.Fatalf("%v\n%s", err, got)
		}
		again, err := Merge(got, nil, o)
		if err != nil || !bytes.Equal(again, got) {
			t.Fatalf("the second time: %v\n%s\n%s", err, got, again)
		}
		before := map[string]any{}
		stripped, err := withoutBlock(old)
		if err != nil {
			t.Fatal(err)
		}
		if err := toml.Unmarshal(stripped, &before); err != nil {
			t.Fatal(err)
		}
		kept(t, nil, before, after)
	})
}

// kept compares what was set with what is.
func kept(t *testing.T, path []string, before, after map[string]any) {
	t.Helper()
	for k, v := range before {
		p := append(path[:len(path):len(path)], k)
		name := strings.Join(p, "/")
		m, ok := v.(map[string]any)
		n, ok2 := after[k].(map[string]any)
		switch {
		case ok && ok2:
			kept(t, p, m, n)
		case reflect.DeepEqual(v, after[k]):
		case name == "disabled_plugins", name == "plugins/"+pluginImages+"/snapshotter", name == "plugins/"+pluginCRIv2+"/containerd/snapshotter", name == strings.Join(unpackPath, "/"):
		default:
			t.Errorf("%s was %v and is %v", name, v, after[k])
		}
	}
}
