package node

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/pelletier/go-toml/v2"
)

// Options say what a containerd shall be told.
type Options struct {
	Version Version // of containerd
	Name    string  // of the snapshotter; "" is "snapfs"
	Socket  string  // at which snapd serves it
	Root    string  // snapd's: where kubelet measures the image file system
	CRI     bool    // it is CRI's snapshotter
	Content bool    // snapd has the content store, too
}

// Name is what the snapshotter is called, unless told otherwise.
const Name = "snapfs"

// contentSuffix makes the name of the content plugin: proxy plugins have one namespace.
const contentSuffix = "-content"

// The lines around what Merge adds at the end of a file.
const (
	beginMark = "# BEGIN snapfs: made by snapctl containerd config, which replaces all up to END"
	endMark   = "# END snapfs"
	beginWord = "# BEGIN snapfs" // how a begin mark begins
)

// The plugins that are spoken of.
const (
	pluginCRIv2    = "io.containerd.grpc.v1.cri" // until configuration version 2
	pluginImages   = "io.containerd.cri.v1.images"
	pluginRuntime  = "io.containerd.cri.v1.runtime"
	pluginTransfer = "io.containerd.transfer.v1.local"
	pluginContent  = "io.containerd.content.v1.content"
	pluginMetadata = "io.containerd.metadata.v1.bolt"
)

// A File is a configuration file that another one imports.
type File struct {
	Name string
	Text []byte
}

// A change is one value that a file has after Merge.
type change struct {
	path []string
	v    any
}

// images is the table of CRI's settings for images.
func images(configVersion int) []string {
	if configVersion <= 2 {
		return []string{"plugins", pluginCRIv2, "containerd"}
	}
	return []string{"plugins", pluginImages}
}

// settings are the single values of o.
func (o Options) settings(configVersion int) []change {
	if !o.CRI {
		return nil
	}
	in := images(configVersion)
	c := []change{{append(slices.Clone(in), "snapshotter"), o.Name}}
	if !o.Version.transfers() {
		c = append(c, change{append(slices.Clone(in), "disable_snapshot_annotations"), false})
	}
	return c
}

// capabilities are what the snapshotter says that it can.
func (o Options) capabilities() []any {
	if o.Version.staged() {
		return []any{"rebase", "remap-ids"}
	}
	return []any{"remap-ids"}
}

// proxies are the proxy plugins of o.
func (o Options) proxies() []change {
	all := []change{{[]string{"proxy_plugins", o.Name}, map[string]any{
		"type": "snapshot", "address": o.Socket, "capabilities": o.capabilities(),
		"exports": map[string]any{"root": o.Root, "enable_remote_snapshot_annotations": "true"},
	}}}
	if o.Content {
		all = append(all, change{[]string{"proxy_plugins", o.Name + contentSuffix}, map[string]any{"type": "content", "address": o.Socket}})
	}
	return all
}

// unpack is what the transfer service is told of a snapshotter.
func unpack(snapshotter string) map[string]any {
	return map[string]any{"platform": platforms.Format(platforms.DefaultSpec()), "snapshotter": snapshotter, "differ": "walking"}
}

// unpackDefaults is what containerd does if its configuration says nothing
// (plugins/transfer/plugin_defaults_linux.go).
func (v Version) unpackDefaults() []any {
	all := []any{unpack("overlayfs")}
	if v.atLeast(2, 3) {
		p := platforms.DefaultSpec()
		p.OSFeatures = []string{"erofs"}
		all = append(all, map[string]any{"platform": platforms.FormatAll(p), "snapshotter": "erofs", "differ": "erofs", "optional": true})
	}
	return all
}

var unpackPath = []string{"plugins", pluginTransfer, "unpack_config"}

// Stanza is what a new configuration file for o holds.
func Stanza(o Options) ([]byte, error) { return Merge(nil, nil, o) }

// Merge returns a configuration file with o in it. Nothing else is changed in it,
// and what Merge has added to old before is replaced. imported are the files that
// old imports: they have the last word, so Merge refuses to write what one of them
// contradicts. What it cannot do safely it refuses with a *LineError.
func Merge(old []byte, imported []File, o Options) ([]byte, error) {
	if o.Name == "" {
		o.Name = Name
	}
	if !o.Version.atLeast(Oldest.Major, Oldest.Minor) {
		return nil, fmt.Errorf("containerd %v is too old: want %v or later", o.Version, Oldest)
	}
	base, err := withoutBlock(old)
	if err != nil {
		return nil, err
	}
	d, err := parse(base)
	if err != nil {
		return nil, err
	}
	version, err := d.version(o.Version)
	if err != nil {
		return nil, err
	}
	want, err := d.clone()
	if err != nil {
		return nil, err
	}
	m := merger{d: d, o: o, want: want}
	if len(base) == 0 {
		put(want, []string{"version"}, int64(version))
		d.edits = append(d.edits, edit{text: fmt.Sprintf("version = %d\n", version)})
	}
	for _, step := range []func() error{
		func() error { return m.settings(version) }, m.content, m.proxies, m.unpacks,
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	text := m.finish()
	if err := check(text, want); err != nil {
		return nil, err
	}
	if err := contradicted(imported, m.made); err != nil {
		return nil, err
	}
	return text, nil
}

// withoutBlock returns text without what an earlier Merge has added.
func withoutBlock(text []byte) ([]byte, error) {
	begin, end := -1, -1
	off, n := 0, 0
	for line := range bytes.Lines(text) {
		n++
		switch s := strings.TrimSpace(string(line)); {
		case strings.HasPrefix(s, beginWord):
			if begin >= 0 {
				return nil, &LineError{Line: n, Err: errors.New("a second block of snapfs begins")}
			}
			begin = off
		case s == endMark:
			if begin < 0 || end >= 0 {
				return nil, &LineError{Line: n, Err: errors.New("a block of snapfs ends that has not begun")}
			}
			end = off + len(line)
		}
		off += len(line)
	}
	switch {
	case begin < 0:
		return text, nil
	case end < 0:
		return nil, &LineError{Line: 1 + bytes.Count(text[:begin], []byte("\n")), Err: fmt.Errorf("a block of snapfs begins and does not end: want a line %q", endMark)}
	}
	head := text[:begin]
	if bytes.HasSuffix(head, []byte("\n\n")) || len(head) == 1 {
		head = head[:len(head)-1] // the empty line before it is finish's
	}
	return slices.Concat(head, text[end:]), nil
}

// version returns the format that a file is in, or should be if it is empty.
func (d *document) version(v Version) (int, error) {
	if len(d.text) == 0 {
		return v.configVersion(), nil
	}
	n, _ := d.data["version"].(int64)
	at := 0
	if val := d.value([]string{"version"}); val != nil {
		at = val.at
	}
	switch {
	case n < 2:
		return 0, d.errorf(at, "configuration version %d: only 2 and later can be changed. Write version = 2 if the file has nothing but full names (io.containerd.grpc.v1.cri, not cri), else see containerd config migrate", n)
	case n > int64(v.configVersion()):
		return 0, d.errorf(at, "configuration version %d: containerd %v reads up to %d", n, v, v.configVersion())
	}
	return int(n), nil
}

// clone returns the data of d once more.
func (d *document) clone() (map[string]any, error) {
	m := map[string]any{}
	err := toml.Unmarshal(d.text, &m)
	return m, err
}

// A merger collects edits and what they should come to.
type merger struct {
	d     *document
	o     Options
	want  map[string]any // what the file shall mean
	made  []change       // what must not be contradicted
	block strings.Builder
}

func (m *merger) settings(version int) error {
	var missing []change
	for _, c := range m.o.settings(version) {
		m.made = append(m.made, c)
		if get(m.d.data, c.path...) == c.v {
			continue
		}
		put(m.want, c.path, c.v)
		ok, err := m.d.set(c.path, literal(c.v))
		if err != nil {
			return err
		}
		if !ok {
			missing = append(missing, c)
		}
	}
	for i, c := range missing { // all of one table
		if i == 0 {
			fmt.Fprintf(&m.block, "\n[%s]\n", join(c.path[:len(c.path)-1]))
		}
		fmt.Fprintf(&m.block, "  %s = %s\n", key(c.path[len(c.path)-1]), literal(c.v))
	}
	return nil
}

// content disables containerd's own content store: it takes exactly one.
func (m *merger) content() error {
	if !m.o.Content {
		return nil
	}
	path := []string{"disabled_plugins"}
	have, _ := m.d.data["disabled_plugins"].([]any)
	if slices.Contains(have, any(pluginContent)) {
		return nil
	}
	put(m.want, path, append(slices.Clone(have), pluginContent))
	v := m.d.value(path)
	if v == nil {
		at := m.d.begin()
		m.d.edits = append(m.d.edits, edit{span{at, at}, m.d.newline(at) + "disabled_plugins = " + list([]string{pluginContent}) + "\n"})
		return nil
	}
	m.d.add(v, quote(pluginContent))
	return nil
}

func (m *merger) proxies() error {
	for _, c := range m.o.proxies() {
		m.made = append(m.made, c)
		if have := get(m.d.data, c.path...); have != nil {
			if reflect.DeepEqual(have, c.v) {
				continue
			}
			return m.d.errorf(m.d.where(c.path), "[%s] is there already, with other settings: remove it, and run this again", join(c.path))
		}
		if err := m.d.settable(append(slices.Clone(c.path), "type")); err != nil {
			return err
		}
		put(m.want, c.path, c.v)
		t := c.v.(map[string]any)
		fmt.Fprintf(&m.block, "\n[%s]\n", join(c.path))
		for _, k := range []string{"type", "address", "capabilities"} {
			if v, ok := t[k]; ok {
				fmt.Fprintf(&m.block, "  %s = %s\n", k, literal(v))
			}
		}
		if e, ok := t["exports"].(map[string]any); ok {
			fmt.Fprintf(&m.block, "  [%s.exports]\n", join(c.path))
			for _, k := range []string{"root", "enable_remote_snapshot_annotations"} {
				fmt.Fprintf(&m.block, "    %s = %s\n", k, literal(e[k]))
			}
		}
	}
	return nil
}

// unpacks tells the transfer service to unpack for the snapshotter. Where a file
// says nothing containerd has defaults; whoever says something must say
// them, too.
func (m *merger) unpacks() error {
	have := get(m.d.data, unpackPath...)
	entries, ok := have.([]any)
	if have != nil && !ok {
		return m.d.errorf(m.d.where(unpackPath), "%s is no array", join(unpackPath))
	}
	for _, e := range entries {
		if e, ok := e.(map[string]any); ok && e["snapshotter"] == m.o.Name {
			return nil
		}
	}
	more := []any{unpack(m.o.Name)}
	if have == nil {
		more = append(m.o.Version.unpackDefaults(), more...)
		if err := m.d.settable(unpackPath); err != nil {
			return err
		}
	}
	put(m.want, unpackPath, append(slices.Clone(entries), more...))
	if v := m.d.value(unpackPath); v != nil { // written in one line
		e := more[0].(map[string]any)
		if len(v.elements) > 0 {
			return m.d.errorf(v.at, "%s is set in one line: write it as tables, [[%s]]", join(unpackPath), join(unpackPath))
		}
		m.d.add(v, fmt.Sprintf("{platform = %s, snapshotter = %s, differ = %s}", literal(e["platform"]), literal(e["snapshotter"]), literal(e["differ"])))
		return nil
	}
	for _, e := range more {
		e := e.(map[string]any)
		fmt.Fprintf(&m.block, "\n[[%s]]\n", join(unpackPath))
		for _, k := range []string{"platform", "snapshotter", "differ", "optional"} {
			if v, ok := e[k]; ok {
				fmt.Fprintf(&m.block, "  %s = %s\n", k, literal(v))
			}
		}
	}
	return nil
}

// finish returns the text with its edits and the block.
func (m *merger) finish() []byte {
	text := m.d.apply()
	if m.block.Len() == 0 {
		return text
	}
	var b bytes.Buffer
	b.Write(text)
	if len(text) > 0 && !bytes.HasSuffix(text, []byte("\n")) {
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "\n%s\n%s\n%s\n", beginMark, strings.Trim(m.block.String(), "\n"), endMark)
	return b.Bytes()
}

// check compares what a text means with what it should.
func check(text []byte, want map[string]any) error {
	d, err := parse(text)
	if err != nil {
		return fmt.Errorf("this file cannot be changed safely: afterwards, %w", err)
	}
	if !reflect.DeepEqual(d.data, want) {
		return errors.New("this file cannot be changed safely: afterwards it would say something else than was meant")
	}
	return nil
}

// contradicted finds an imported file that says something else than was made.
func contradicted(imported []File, made []change) error {
	for _, f := range imported {
		d, err := parse(f.Text)
		if err != nil {
			if e, ok := errors.AsType[*LineError](err); ok {
				e.File = f.Name
			}
			return err
		}
		for _, c := range made {
			if have := get(d.data, c.path...); have != nil && !reflect.DeepEqual(have, c.v) {
				return &LineError{File: f.Name, Line: d.line(d.where(c.path)), Err: fmt.Errorf("%s is set to something else there, and imported files have the last word", join(c.path))}
			}
		}
	}
	return nil
}
