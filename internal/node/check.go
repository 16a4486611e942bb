package node

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A Level is how bad a finding is.
type Level string

// The levels.
const (
	OK   Level = "ok"
	Warn Level = "warn" // it works, but not as well as it could, or not for everything
	Fail Level = "FAIL" // images are not lazy, or do not start at all
)

// A Finding is one thing that was looked at.
type Finding struct {
	Level Level  `json:"level"`
	What  string `json:"what"`
	Fix   string `json:"fix,omitempty"` // what to do about it
}

// A report collects findings.
type report struct{ all []Finding }

func (r *report) ok(format string, args ...any) {
	r.all = append(r.all, Finding{Level: OK, What: fmt.Sprintf(format, args...)})
}

func (r *report) warn(fix, format string, args ...any) {
	r.all = append(r.all, Finding{Warn, fmt.Sprintf(format, args...), fix})
}

func (r *report) fail(fix, format string, args ...any) {
	r.all = append(r.all, Finding{Fail, fmt.Sprintf(format, args...), fix})
}

// write is the cure of most.
const write = "snapctl containerd config --write, then restart containerd"

// settings is what a containerd's configuration comes to: all files together,
// defaults filled in, in the newest format (containerd config dump).
type settings struct {
	data    map[string]any
	version int
}

func parseDump(dump []byte) (*settings, error) {
	d, err := parse(dump)
	if err != nil {
		return nil, err
	}
	v, _ := d.data["version"].(int64)
	return &settings{d.data, int(v)}, nil
}

func (s *settings) get(path ...string) any { return get(s.data, path...) }

func (s *settings) text(path ...string) string {
	t, _ := s.get(path...).(string)
	return t
}

func (s *settings) table(path ...string) map[string]any {
	t, _ := s.get(path...).(map[string]any)
	return t
}

// RootOf is the directory of the state of the containerd that has printed dump.
func RootOf(dump []byte) string {
	s, err := parseDump(dump)
	if err != nil {
		return ""
	}
	return s.text("root")
}

// images is a setting of CRI for images.
func (s *settings) images(key ...string) []string { return append(images(s.version), key...) }

// address is containerd's socket.
func (s *settings) address() string {
	if a := s.text("plugins", "io.containerd.server.v1.grpc", "address"); a != "" {
		return a
	}
	return s.text("grpc", "address")
}

// sandbox is the image of pods' first containers, which CRI pulls by itself.
func (s *settings) sandbox() string {
	if s.version <= 2 {
		return s.text("plugins", pluginCRIv2, "sandbox_image")
	}
	return s.text("plugins", pluginImages, "pinned_images", "sandbox")
}

func (s *settings) disabled(plugin string) bool {
	list, _ := s.get("disabled_plugins").([]any)
	return slices.Contains(list, any(plugin))
}

// cri tells whether containerd serves the kubelet.
func (s *settings) cri() bool {
	return !s.disabled(pluginCRIv2) && !s.disabled(pluginImages) && s.table(images(s.version)...) != nil
}

// CheckConfig looks at what "containerd config dump" printed. Of o, CRI and
// Content say what is wanted; without them, what is configured only must fit together.
func CheckConfig(dump []byte, o Options) []Finding {
	if o.Name == "" {
		o.Name = Name
	}
	r := &report{}
	s, err := parseDump(dump)
	if err != nil {
		r.fail("see containerd config dump", "containerd's configuration cannot be read: %v", err)
		return r.all
	}
	r.snapshotter(s, o)
	r.unpack(s, o)
	if s.cri() {
		r.cri(s, o)
	}
	r.content(s, o)
	return r.all
}

func (r *report) snapshotter(s *settings, o Options) {
	p := s.table("proxy_plugins", o.Name)
	switch {
	case p == nil:
		r.fail(write, "containerd has no proxy plugin %s", o.Name)
		return
	case p["type"] != "snapshot" && p["type"] != "io.containerd.snapshotter.v1":
		r.fail(write, "proxy_plugins.%s has type = %q, want snapshot", o.Name, p["type"])
		return
	case strings.TrimPrefix(fmt.Sprint(p["address"]), "unix://") != o.Socket:
		r.fail(write+", or see [[containerd]] in snapd's configuration", "proxy_plugins.%s has address = %q, and snapd serves at %s", o.Name, p["address"], o.Socket)
		return
	}
	r.ok("proxy_plugins.%s leads to %s", o.Name, o.Socket)
	caps, _ := p["capabilities"].([]any)
	switch rebase := slices.Contains(caps, any("rebase")); {
	case rebase && !o.Version.staged():
		r.fail(write, "proxy_plugins.%s has the capability rebase, which containerd %v uses without telling what is below a layer: no layer can be lazy", o.Name, o.Version)
	case !rebase && o.Version.staged():
		r.warn(write, "proxy_plugins.%s lacks the capability rebase: layers are prepared one after the other", o.Name)
	}
	if !slices.Contains(caps, any("remap-ids")) {
		r.warn(write, "proxy_plugins.%s lacks the capability remap-ids: containers with user namespaces copy their image", o.Name)
	}
	exports, _ := p["exports"].(map[string]any)
	if exports["root"] != o.Root {
		r.warn(write, "proxy_plugins.%s.exports has root = %v, want %s: the kubelet measures another file system", o.Name, text(exports["root"]), o.Root)
	}
	if o.Version.transfers() && exports["enable_remote_snapshot_annotations"] != "true" {
		r.fail(write, "proxy_plugins.%s.exports lacks enable_remote_snapshot_annotations = 'true': snapd is not told which image a layer is of, and none is lazy", o.Name)
	}
}

// text shows a value that may be missing.
func text(v any) string {
	if v == nil {
		return "nothing"
	}
	return fmt.Sprintf("%q", v)
}

func (r *report) unpack(s *settings, o Options) {
	if s.disabled(pluginTransfer) {
		return
	}
	list, _ := s.get(unpackPath...).([]any)
	for _, e := range list {
		if e, ok := e.(map[string]any); ok && e["snapshotter"] == o.Name {
			r.ok("the transfer service unpacks for %s", o.Name)
			return
		}
	}
	if s.cri() && s.text(s.images("snapshotter")...) == o.Name && o.Version.transfers() {
		r.fail(write, "the transfer service does not unpack for %s (%s): CRI cannot pull", o.Name, join(unpackPath))
		return
	}
	r.warn(write, "the transfer service does not unpack for %s (%s): ctr images pull needs --local", o.Name, join(unpackPath))
}

// A localOnly is a setting with which CRI quietly does without the transfer
// service (internal/cri/config/config.go, CheckLocalImagePullConfigs, 2.1 to 2.4).
type localOnly struct {
	key []string
	set func(v any) bool
	fix string
}

var localOnlys = []localOnly{
	{[]string{"use_local_image_pull"}, isTrue, "remove it"},
	{[]string{"disable_snapshot_annotations"}, func(v any) bool { return v == false }, "remove it: the proxy plugin's exports ask for annotations"},
	{[]string{"discard_unpacked_layers"}, isTrue, "remove it"},
	{[]string{"registry", "mirrors"}, isTable, "use registry.config_path and hosts.toml"},
	{[]string{"registry", "configs"}, isTable, "use registry.config_path and hosts.toml"},
	{[]string{"registry", "auths"}, isTable, "use imagePullSecrets"},
	{[]string{"max_concurrent_downloads"}, func(v any) bool { n, ok := v.(int64); return ok && n != 3 }, "set it in [plugins.'" + pluginTransfer + "'] instead"},
	{[]string{"image_pull_with_sync_fs"}, isTrue, "remove it"},
}

func isTrue(v any) bool { return v == true }

func isTable(v any) bool {
	t, ok := v.(map[string]any)
	return ok && len(t) > 0
}

func (r *report) cri(s *settings, o Options) {
	is := s.text(s.images("snapshotter")...)
	switch {
	case is != o.Name && o.CRI:
		r.fail("snapctl containerd config --write --cri, then restart containerd", "CRI's snapshotter is %q", is)
	case is != o.Name:
		r.ok("CRI uses %q; snapctl containerd config --write --cri makes it %s", is, o.Name)
	default:
		r.ok("CRI's snapshotter is %s", o.Name)
		r.annotations(s, o)
	}
	r.runtimes(s, is, o)
}

// annotations finds out whether snapd is told what CRI pulls.
func (r *report) annotations(s *settings, o Options) {
	annotated := s.get(s.images("disable_snapshot_annotations")...) == false
	if !o.Version.transfers() {
		if annotated {
			r.ok("CRI says which image a layer is of")
		} else {
			r.fail("snapctl containerd config --write --cri, then restart containerd", "%s is not false: snapd is not told which image a layer is of, and none is lazy", join(s.images("disable_snapshot_annotations")))
		}
		return
	}
	var reasons []localOnly
	for _, l := range localOnlys {
		if l.set(s.get(s.images(l.key...)...)) {
			reasons = append(reasons, l)
		}
	}
	if len(reasons) == 0 {
		r.ok("CRI pulls by the transfer service")
		return
	}
	for _, l := range reasons {
		name := join(s.images(l.key...))
		if annotated {
			r.warn(l.fix, "%s = %s turns the transfer service off for CRI: images are lazy, but layers are prepared one after the other", name, brief(s.get(s.images(l.key...)...)))
		} else {
			r.fail(l.fix, "%s = %s turns the transfer service off for CRI, and without it disable_snapshot_annotations would have to be false: no layer is lazy", name, brief(s.get(s.images(l.key...)...)))
		}
	}
}

func brief(v any) string {
	if t, ok := v.(map[string]any); ok {
		return "{" + strings.Join(slices.Sorted(maps.Keys(t)), ", ") + "}"
	}
	return fmt.Sprint(v)
}

// runtimes finds runtime classes with snapshotters of their own: their pods have
// the pause image on theirs, and other images maybe not.
func (r *report) runtimes(s *settings, cri string, o Options) {
	at := []string{"plugins", pluginRuntime, "containerd", "runtimes"}
	if s.version <= 2 {
		at = []string{"plugins", pluginCRIv2, "containerd", "runtimes"}
	}
	all := s.table(at...)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		t, _ := all[name].(map[string]any)
		own, _ := t["snapshotter"].(string)
		if own == "" || own == cri || own != o.Name && cri != o.Name {
			continue
		}
		r.warn(fmt.Sprintf("remove it, or make all %s", o.Name),
			"runtime %q has snapshotter = %q, and CRI %q: an image that was pulled for one, the pause image above all, is not unpacked for the other", name, own, cri)
	}
}

// contentProxies are the proxy plugins that are content stores.
func (s *settings) contentProxies() (names []string) {
	all := s.table("proxy_plugins")
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if p, ok := all[name].(map[string]any); ok && (p["type"] == "content" || p["type"] == "io.containerd.content.v1") {
			names = append(names, name)
		}
	}
	return names
}

func (r *report) content(s *settings, o Options) {
	withContent := "snapctl containerd config --write --content, then restart containerd"
	proxies, off := s.contentProxies(), s.disabled(pluginContent)
	switch {
	case len(proxies) > 1, len(proxies) == 1 && !off:
		r.fail(withContent+"; or remove "+strings.Join(proxies, ", "), "containerd has more than one content store (proxy_plugins %s, and %s is not in disabled_plugins): it does not start", strings.Join(proxies, ", "), pluginContent)
	case len(proxies) == 0 && off:
		r.fail(withContent+"; or remove it from disabled_plugins", "containerd has no content store: %s is disabled", pluginContent)
	case len(proxies) == 0 && o.Content:
		r.fail(withContent, "containerd has its own content store")
	case len(proxies) == 0:
		r.warn(withContent, "containerd has its own content store: layers of lazily pulled images are not in it, and pushing, exporting or unpacking them elsewhere finds no content")
	case strings.TrimPrefix(s.text("proxy_plugins", proxies[0], "address"), "unix://") != o.Socket:
		r.warn(withContent, "containerd's content store is at %q, and snapd serves at %s", s.text("proxy_plugins", proxies[0], "address"), o.Socket)
	case s.text("plugins", pluginMetadata, "content_sharing_policy") == "isolated":
		r.warn("set it to 'shared'", "content_sharing_policy is 'isolated': no layer of a lazily pulled image gets an entry in a namespace before its bytes were sent, and pushing, exporting or unpacking it elsewhere finds no content")
	default:
		r.ok("containerd's content store is snapd's")
	}
}
