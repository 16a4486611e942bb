package integration

import (
	"archive/tar"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/internal/peers"
)

// What of Kubernetes' suite concerns images and the file systems of containers,
// and does not want what is not in a registry of ours: an image by the digest
// that Google's has, nginx, a network.
const (
	criFocus = "Image|PodSandbox runtime should support basic operations|basic operations on container|volume and device|Container Mount|log runtime|Idempotence|readonly rootfs"
	criSkip  = "image with digest|NRI" +
		// containerd 2.4.2 fails these with overlayfs, too.
		"|execSync with timeout|remove all tags from other registries"
)

// TestCritest runs the part of Kubernetes' suite for runtimes that has to do with
// images, which come by containerd's hosts.toml from a registry of ours.
func TestCritest(t *testing.T) {
	t.Parallel()
	testCritest(t, kind{peer: peers.Containerd24}, criFocus, criSkip)
}

// testCritest runs a part of the suite on a containerd of some kind.
func testCritest(t *testing.T, kind kind, focus, skip string) {
	hub := newHub(t)
	tag := func(repo, tag string, im *image) {
		for d, b := range im.blobs {
			hub.request(t, http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), "application/octet-stream", b)
		}
		hub.request(t, http.MethodPut, "/v2/"+repo+"/manifests/"+tag, mediaType(im.raw), im.raw)
	}
	box := busybox(t)
	with := func(user, mark string) *image {
		im := newImage(t, gzipTar, box, []file{dir("mark"), reg("mark/"+mark, []byte(mark))})
		var c ocispec.Image
		unmarshal(t, im.config, &c)
		c.Config.User, c.Config.Cmd = user, []string{"sh"}
		im.setConfig(t, c)
		return im
	}
	const staging = "k8s-staging-cri-tools/test-image-"
	for repo, user := range map[string]string{"user-uid": "1002", "user-username": "www-data", "user-uid-group": "1003:users", "user-username-group": "www-data:100", "predefined-group": "1000"} {
		tag(staging+repo, "latest", with(user, repo))
	}
	for _, repo := range []string{"latest", "1", "2", "3"} {
		tag(staging+repo, "latest", with("", repo))
	}
	for _, v := range []string{"1", "2", "3"} {
		tag(staging+"tags", v, with("", "tags"))
	}
	tag(staging+"tag", "test", with("", "test"))
	tag(staging+"tag", "all", with("", "all"))
	tag("e2e-test-images/busybox", "1.29-2", with("", "busybox"))
	pause := pauseImage(t)
	tag("pause", "3.9", pause)

	hosts := "server = \"" + hub.URL + "\"\n"
	names := []string{"registry.k8s.io", "k8s.gcr.io", "gcr.io"}
	certs := t.TempDir()
	put := func(dir string) {
		for _, name := range names {
			if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name, "hosts.toml"), []byte(hosts), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(certs)
	m := startServed(t, fmt.Sprintf("[registry]\nconfig_dirs = [%q]\n", certs))
	critest := filepath.Join(needPeer(t, peers.Critest), "critest")
	k := m.kubelet("c", kind, hub.put(t, "pause", pause))
	put(filepath.Join(k.home, "certs.d"))

	endpoint := "unix://" + k.socket()
	cmd := exec.CommandContext(t.Context(), critest, "-config", "/dev/null", "-runtime-endpoint", endpoint, "-image-endpoint", endpoint,
		"-ginkgo.focus", focus, "-ginkgo.skip", skip, "-ginkgo.no-color", "-ginkgo.succinct")
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	ran := regexp.MustCompile(`CRI validation - [1-9]\d*/\d+ specs`).Find(out)
	t.Logf("%s", ran)
	if err != nil {
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, "[FAIL]") {
				t.Error(strings.TrimSpace(line))
			}
		}
		t.Fatalf("critest: %v\n%s", err, out)
	}
	if len(ran) == 0 {
		t.Errorf("critest ran nothing:\n%s", out)
	}
	k.emptyCRI()
	m.nothingLeftSoon()
}

// busybox is the layer of a system whose programs are all busybox.
func busybox(t *testing.T) []file {
	t.Helper()
	list, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		t.Skip("needs busybox-static")
	}
	files := tools(t)[:2]
	for name := range strings.FieldsSeq(string(list)) {
		if name != "busybox" {
			files = append(files, typed("bin/"+name, tar.TypeSymlink, "busybox"))
		}
	}
	return append(files, dir("proc"), dir("sys"), dir("dev"), dir("tmp"), dir("run"), dir("etc"), dir("root"), dir("home"),
		reg("etc/passwd", []byte("root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\ndefault-user:x:1000:1000::/home:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")),
		reg("etc/group", []byte("root:x:0:\nwww-data:x:33:\nusers:x:100:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")))
}
