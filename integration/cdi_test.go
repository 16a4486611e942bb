package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A description with everything that one can have. Its hooks say on the host where they were.
const cdiFile = `
cdiVersion: "0.7.0"
kind: vendor.com/thing
devices:
- name: one
  containerEdits:
    env: ["THING=1"]
    deviceNodes: [{path: /dev/things/full, hostPath: /dev/full, permissions: rw}]
    mounts: [{hostPath: DIR/lib, containerPath: /usr/lib/thing, options: [ro, bind]}]
    additionalGids: [4711]
    hooks:
    - {hookName: createContainer, path: DIR/hook, args: [hook, create]}
    - {hookName: poststop, path: DIR/hook, args: [hook, stop]}
- name: rdt
  containerEdits: {intelRdt: {closID: x}}
`

// The hook writes into the root file system, which it finds as those of vendors do: by the config.json of the bundle.
const cdiHook = `#!/bin/sh
read -r state
bundle=$(echo "$state" | sed -n 's/.*"bundle":"\([^"]*\)".*/\1/p')
root=$(sed -n 's/.*"root":{"path":"\([^"]*\)".*/\1/p' "$bundle/config.json")
[ $1 = stop ] || echo hooked >"$root/hooked"
echo $1 >>DIR/seen
`

// TestDevicesByName gives a container a device by its CDI name, and lets no image take one.
func TestDevicesByName(t *testing.T) {
	t.Parallel()
	needs(t)
	home, hub := t.TempDir(), newHub(t)
	cdi := filepath.Join(home, "cdi")
	for name, text := range map[string]string{"cdi/vendor.yaml": cdiFile, "cdi/broken.yaml": "kind: [", "hook": cdiHook, "lib/file": "of the vendor"} {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(home, name)), 0o755))
		must(t, os.WriteFile(filepath.Join(home, name), []byte(strings.ReplaceAll(text, "DIR", home)), 0o755))
	}
	m := networkMachine(t, fmt.Sprintf("[cdi]\ndirs = ['%s', '/no/such']", cdi))
	im := newImage(t, eStargz, []file{dir("proc"), dir("sys"), dir("dev"), dir("tmp"), dir("etc"), inside(t)})
	var config ocispec.Image
	must(t, json.Unmarshal(im.config, &config))
	config.Config.Labels = map[string]string{"cdi.k8s.io/a": "vendor.com/thing=one"}
	im.manifest.Annotations = config.Config.Labels
	im.setConfig(t, config)
	ref := hub.put(t, "cdi", im)

	out := m.ok("run", "--name", "one", "--device", "vendor.com/thing=one", ref, "/inside", "cat", "/proc/self/environ", "/usr/lib/thing/file", "/hooked", "/proc/self/status")
	for _, want := range []string{"THING=1\x00", "of the vendor", "hooked\n", "4711"} {
		if !strings.Contains(out, want) {
			t.Errorf("without %q: %q", want, out)
		}
	}
	if says := m.fails("run", "--rm", "--device", "vendor.com/thing=one", ref, "/inside", "make", "/dev/things/full"); !strings.Contains(says, "no space left on device") {
		t.Errorf("writing to its device: %s", says)
	}
	m.ok("start", "-a", "one") // and again
	m.ok("rm", "one")
	m.eventually("the hooks have run", func() bool { // those that follow a container are not waited for
		seen, _ := os.ReadFile(filepath.Join(home, "seen"))
		return len(seen) == 3*len("create\nstop\n") && strings.Count(string(seen), "create") == 3
	})
	// What an image, or an annotation, says is nothing.
	for _, args := range [][]string{{}, {"--annotation", "cdi.k8s.io/a=vendor.com/thing=one"}, {"--label", "cdi.k8s.io/a=vendor.com/thing=one"}} {
		if out := m.ok(append(append([]string{"run", "--rm"}, args...), ref, "/inside", "cat", "/proc/self/environ")...); strings.Contains(out, "THING") {
			t.Errorf("%q, and the label of the image, give it a device: %q", args, out)
		}
	}
	for name, wants := range map[string][]string{
		"vendor.com/thing=two": {cdi, "/no/such", "vendor.com/thing=one", "broken.yaml"},
		"vendor.com/thing=rdt": {"intelRdt is not supported", "vendor.yaml"},
		"vendor.com/=x":        {"vendor.com/=x"},
	} {
		says := m.fails("run", "--rm", "--device", name, ref, "/inside", "exit", "0")
		for _, want := range wants {
			if !strings.Contains(says, want) {
				t.Errorf("%s: without %q: %s", name, want, says)
			}
		}
	}
	if says := m.fails("run", "--rm", "--userns", "auto", "--device", "vendor.com/thing=one", ref, "/inside", "exit", "0"); !strings.Contains(says, "add --userns host") {
		t.Errorf("its hooks, with users of the container's own: %s", says)
	}
	if says := m.fails("run", "--rm", "--gpus", "all", ref, "/inside", "exit", "0"); !strings.Contains(says, "nvidia.com/gpu=all") {
		t.Errorf("--gpus: %s", says)
	}
}
