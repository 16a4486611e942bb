package runtime

import (
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestScope: cgroupsPath as systemd's driver has it.
func TestScope(t *testing.T) {
	for path, want := range map[string]string{
		"":              "/system.slice/snaprun-id.scope",
		"::x":           "/system.slice/x.scope",
		"a-b.slice:p:x": "/a.slice/a-b.slice/p-x.scope",
		"-.slice:p:x":   "/p-x.scope",
		"kubepods-pod1_2.slice:cri-containerd:0123": "/kubepods.slice/kubepods-pod1_2.slice/cri-containerd-0123.scope",
		"/a/b":                                  "! want SLICE:PREFIX:NAME",
		"a.slice:p":                             "! want SLICE:PREFIX:NAME",
		"a.slice:p:":                            "! want SLICE:PREFIX:NAME",
		"a.slice:p:x.slice":                     "! a slice holds no processes",
		"a:p:x":                                 "! no name of a slice",
		"a.slice:p:../x":                        "! no name of a unit",
		"../x.slice:p:x":                        "! no name of a slice",
		"a.slice:p:" + strings.Repeat("x", 300): "! at most 255 bytes",
	} {
		s := &specs.Spec{Version: specs.Version, Process: &specs.Process{Args: []string{"x"}, Cwd: "/"}, Annotations: map[string]string{"org.systemd.property.X": "'y'"},
			Linux: &specs.Linux{CgroupsPath: path, Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}}}}
		p, err := NewPlan(s, Options{ID: "id", Systemd: true})
		if words, bad := strings.CutPrefix(want, "! "); bad {
			if err == nil || !strings.Contains(err.Error(), words) {
				t.Errorf("%q: %v, want %q", path, err, words)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", path, err)
			continue
		}
		if p.Cgroup() != want || !strings.HasSuffix(want, "/"+p.Scope()) {
			t.Errorf("%q: group %s, unit %s, want group %s", path, p.Cgroup(), p.Scope(), want)
		}
		if w := strings.Join(p.Warnings(), " "); !strings.Contains(w, "org.systemd.property.X") {
			t.Errorf("%q: warnings %q, want one about the annotation", path, w)
		}
	}
}
