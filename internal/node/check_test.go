package node

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

// show is what a test compares: levels and what they are about.
func show(all []Finding) string {
	var b strings.Builder
	for _, f := range all {
		fmt.Fprintf(&b, "%s %s\n", f.Level, f.What)
		if (f.Level == OK) != (f.Fix == "") {
			fmt.Fprintf(&b, "with the fix %q\n", f.Fix)
		}
	}
	return b.String()
}

// TestCheckMerged: what Merge makes of each version's configuration is sound, and
// without it the least that is wrong is that there is no snapshotter.
func TestCheckMerged(t *testing.T) {
	for version, old := range dumps(t) {
		o := opts(version)
		merged, err := Merge(old, nil, o)
		if err != nil {
			t.Fatal(err)
		}
		if got := show(CheckConfig(merged, o)); strings.Contains(got, "warn") || strings.Contains(got, "FAIL") {
			t.Errorf("%s, after Merge:\n%s", version, got)
		}
		o.CRI, o.Content = false, false
		got := show(CheckConfig(old, o))
		for _, want := range []string{"FAIL containerd has no proxy plugin snapfs\n", "warn the transfer service does not unpack", "ok CRI uses \"overlayfs\"", "warn containerd has its own content store"} {
			if !strings.Contains(got, want) {
				t.Errorf("%s, before: no %q in\n%s", version, want, got)
			}
		}
	}
}

// TestCheckConfig spoils a sound configuration in one way at a time.
func TestCheckConfig(t *testing.T) {
	base := dumps(t)
	for _, c := range []struct {
		version, old, new string
		want              string // begins the line of one finding; no other but ok
	}{
		{"2.4.2", "disable_snapshot_annotations = true", "disable_snapshot_annotations = false", "warn plugins.'io.containerd.cri.v1.images'.disable_snapshot_annotations = false turns the transfer service off"},
		{"2.4.2", "discard_unpacked_layers = false", "discard_unpacked_layers = true", "FAIL plugins.'io.containerd.cri.v1.images'.discard_unpacked_layers = true turns"},
		{"2.3.7", "use_local_image_pull = false", "use_local_image_pull = true", "FAIL plugins.'io.containerd.cri.v1.images'.use_local_image_pull = true turns"},
		{"2.2.9", "    max_concurrent_downloads = 3\n    concurrent_layer_fetch_buffer = 0\n    image_pull", "    max_concurrent_downloads = 5\n    image_pull", "FAIL plugins.'io.containerd.cri.v1.images'.max_concurrent_downloads = 5"},
		{"2.4.2", "image_pull_with_sync_fs = false", "image_pull_with_sync_fs = true", "FAIL plugins.'io.containerd.cri.v1.images'.image_pull_with_sync_fs"},
		{"2.4.2", "    [plugins.'io.containerd.cri.v1.images'.registry]\n", "    [plugins.'io.containerd.cri.v1.images'.registry]\n[plugins.'io.containerd.cri.v1.images'.registry.mirrors.\"docker.io\"]\nendpoint = ['x']\n[plugins.'io.containerd.cri.v1.images'.x]\n", "FAIL plugins.'io.containerd.cri.v1.images'.registry.mirrors = {docker.io} turns"},
		{"2.0.14", "disable_snapshot_annotations = false", "disable_snapshot_annotations = true", "FAIL plugins.'io.containerd.cri.v1.images'.disable_snapshot_annotations is not false"},
		{"1.7.35", "disable_snapshot_annotations = false", "disable_snapshot_annotations = true", "FAIL plugins.'io.containerd.grpc.v1.cri'.containerd.disable_snapshot_annotations is not false"},
		{"2.3.7", "capabilities = ['remap-ids']", "capabilities = ['rebase', 'remap-ids']", "FAIL proxy_plugins.snapfs has the capability rebase, which containerd 2.3.7"},
		{"2.4.2", "capabilities = ['rebase', 'remap-ids']", "capabilities = ['remap-ids']", "warn proxy_plugins.snapfs lacks the capability rebase"},
		{"2.4.2", "capabilities = ['rebase', 'remap-ids']", "capabilities = ['rebase']", "warn proxy_plugins.snapfs lacks the capability remap-ids"},
		{"2.4.2", "enable_remote_snapshot_annotations = 'true'", "enable_remote_snapshot_annotations = 'yes'", "FAIL proxy_plugins.snapfs.exports lacks"},
		{"2.4.2", "    root = '/var/lib/snapfs'\n", "", "warn proxy_plugins.snapfs.exports has root = nothing"},
		{"2.4.2", "  type = 'snapshot'\n  address = '/run/snapfs/containerd.sock'", "  type = 'snapshot'\n  address = '/run/x'", "FAIL proxy_plugins.snapfs has address"},
		{"2.4.2", "type = 'snapshot'", "type = 'diff'", "FAIL proxy_plugins.snapfs has type"},
		{"2.4.2", "\n  snapshotter = 'snapfs'\n  differ", "\n  snapshotter = 'native'\n  differ", "FAIL the transfer service does not unpack for snapfs"},
		{"2.4.2", "disabled_plugins = ['io.containerd.content.v1.content']", "disabled_plugins = []", "FAIL containerd has more than one content store"},
		{"2.4.2", "type = 'content'", "type = 'diff'", "FAIL containerd has no content store"},
		{"2.4.2", "content_sharing_policy = 'shared'", "content_sharing_policy = 'isolated'", "warn content_sharing_policy is 'isolated'"},
		{"2.4.2", "type = 'content'\n  address = '/run/snapfs", "type = 'content'\n  address = '/run/other", "warn containerd's content store is at"},
		{"2.4.2", "          snapshotter = ''", "          snapshotter = 'overlayfs'", "warn runtime \"runc\" has snapshotter = \"overlayfs\", and CRI \"snapfs\""},
		{"1.7.35", "          snapshotter = \"\"", "          snapshotter = \"native\"", "warn runtime \"runc\" has snapshotter"},
		{"2.4.2", "version = 4", "version = [", "FAIL containerd's configuration cannot be read"},
	} {
		o := opts(c.version)
		merged, err := Merge(base[c.version], nil, o)
		if err != nil {
			t.Fatal(err)
		}
		spoilt := bytes.Replace(merged, []byte(c.old), []byte(c.new), 1)
		if bytes.Equal(spoilt, merged) {
			t.Errorf("%s has no %q", c.version, c.old)
			continue
		}
		var bad []string
		for line := range strings.Lines(show(CheckConfig(spoilt, o))) {
			if !strings.HasPrefix(line, "ok ") {
				bad = append(bad, line)
			}
		}
		if len(bad) != 1 || !strings.HasPrefix(bad[0], c.want) {
			t.Errorf("%s with %q:\n%s\nwant %q alone", c.version, c.new, strings.Join(bad, ""), c.want)
		}
	}
}
