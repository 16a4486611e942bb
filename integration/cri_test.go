package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/peers"
)

// criConfig makes a containerd serve kubelet. Pods have the host's network, or
// one that a script pretends to set up: the machine's own stays as it is.
const criConfig = `
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "{snapshotter}"
  stats_collect_period = 1
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{pause}"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "{home}/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  enable_unprivileged_ports = false
  enable_unprivileged_icmp = false
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{home}/cni/bin"]
    conf_dir = "{home}/cni/conf"
    use_internal_loopback = true
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "{runc}"
      SystemdCgroup = {systemd}
`

// cniPlugin answers for a network that is not there.
const cniPlugin = `#!/bin/sh
case $CNI_COMMAND in
ADD) echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"'"$CNI_NETNS"'"}],"ips":[{"interface":0,"address":"192.0.2.7/24"}]}' ;;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}' ;;
STATUS) ;;
esac
cat >/dev/null
`

// A kubelet is crictl, on a containerd of its own.
type kubelet struct {
	*ctrd
	crictl string
}

// kubelet starts a containerd with CRI. pause is the image that pods begin with.
func (m *machine) kubelet(name string, k kind, pause string) *kubelet {
	m.Helper()
	crictl := filepath.Join(needPeer(m, peers.Crictl), "crictl")
	runc := "runc"
	if k.snaprun {
		runc = m.snaprun()
	} else if _, err := findGCC(); err == nil {
		runc = filepath.Join(needPeer(m, peers.Runc), "runc")
	}
	k.cri = true
	c := m.newContainerd(name, k)
	c.namespace = "k8s.io"
	c.text += strings.NewReplacer("{home}", c.home, "{pause}", pause, "{snapshotter}", c.snapshotter, "{runc}", runc, "{systemd}", strconv.FormatBool(k.slice != "")).Replace(criConfig)
	host, _, _ := strings.Cut(pause, "/")
	for file, text := range map[string]string{
		"cni/bin/pretend":                 cniPlugin,
		"cni/conf/10-pretend.conflist":    `{"cniVersion":"1.0.0","name":"pretend","plugins":[{"type":"pretend"}]}`,
		"certs.d/" + host + "/hosts.toml": `server = "http://` + host + `"` + "\n",
	} {
		file = filepath.Join(c.home, file)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			m.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
			m.Fatal(err)
		}
	}
	if k.slice != "" {
		c.cgroup, c.prefix = k.slice, k.prefix
	}
	kl := &kubelet{c, crictl}
	kl.start()
	return kl
}

// start starts containerd and waits until it serves CRI, too.
func (k *kubelet) start() {
	k.Helper()
	k.ctrd.start()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		_, err := k.try("version")
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			k.Fatalf("%v\ncontainerd said:\n%s", err, k.said())
		}
	}
}

// try runs crictl.
func (k *kubelet) try(args ...string) (string, error) {
	k.Helper()
	endpoint := "unix://" + k.socket()
	return k.command(k.Context(), k.crictl, append([]string{"--config", "/dev/null", "-r", endpoint, "-i", endpoint, "-t", "30s"}, args...)...)
}

// do is try, which succeeds.
func (k *kubelet) do(args ...string) string {
	k.Helper()
	out, err := k.try(args...)
	if err != nil {
		k.Fatalf("%v\ncontainerd said:\n%s", err, k.said())
	}
	return strings.TrimSpace(out)
}

// file writes what crictl wants as a file.
func (k *kubelet) file(v any) string {
	k.Helper()
	name := filepath.Join(k.home, k.unique("config"))
	if err := os.WriteFile(name, marshal(k, v), 0o600); err != nil {
		k.Fatal(err)
	}
	return name
}

type object = map[string]any

// A pod is one that runs.
type pod struct {
	*kubelet
	config string
	id     string
}

// pod starts a pod with the namespaces (runtime/v1/api.proto, NamespaceOption).
func (k *kubelet) pod(namespaces object) *pod {
	k.Helper()
	return k.podWith(object{"namespace_options": namespaces})
}

// podWith starts a pod with a security context.
func (k *kubelet) podWith(context object) *pod {
	k.Helper()
	name := k.unique("pod")
	config := k.file(object{
		"metadata":      object{"name": name, "namespace": "test", "uid": name, "attempt": 1},
		"log_directory": k.home,
		"linux":         object{"cgroup_parent": k.cgroup, "security_context": context},
	})
	return &pod{k, config, k.do("runp", config)}
}

// onHost are the namespaces of pods with the host's network.
var onHost = object{"network": 2}

// container starts a container in the pod.
func (p *pod) container(ref string, namespaces object, args ...string) (id string) {
	p.Helper()
	config := p.file(object{
		"metadata": object{"name": p.unique("container")},
		"image":    object{"image": ref},
		"command":  args,
		"linux":    object{"security_context": object{"namespace_options": namespaces}},
	})
	id = p.do("create", p.id, config, p.config)
	p.do("start", id)
	return id
}

// exec runs something in a container.
func (p *pod) exec(id string, args ...string) string {
	p.Helper()
	return p.do(append([]string{"exec", "-s", id}, args...)...)
}

func (p *pod) remove() {
	p.Helper()
	p.do("stopp", p.id)
	p.do("rmp", "-f", p.id)
}

// emptyCRI removes all as kubelet does, and then looks as empty does.
func (k *kubelet) emptyCRI() {
	k.Helper()
	for _, id := range strings.Fields(k.do("pods", "-q")) {
		k.do("rmp", "-f", id)
	}
	for _, id := range strings.Fields(k.do("images", "-q")) {
		k.do("rmi", id)
	}
	k.empty()
}

// pauseImage is that of a program that waits.
func pauseImage(t *testing.T) *image {
	im := newImage(t, gzipTar, base(t))
	var c ocispec.Image
	unmarshal(t, im.config, &c)
	c.Config.Entrypoint = []string{"/inside", "wait"}
	im.setConfig(t, c)
	return im
}

// TestCRI: pods run as under kubelet, on an image that is private, and the
// numbers and the removals that kubelet's collector goes by are true.
func TestCRI(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	pause := hub.put(t, "pause", pauseImage(t))
	for _, kind := range []kind{{peer: peers.Containerd24}, {peer: peers.Containerd22, serial: true}} {
		t.Run(kind.String(), func(t *testing.T) {
			m := startServed(t, "")
			k := m.kubelet("c", kind, pause)
			im := newImage(t, eStargz, base(t), someFiles(1800, "data", 60))
			ref := hub.put(t, "pods", im)
			k.do("pull", ref)
			p := k.pod(onHost)
			id := p.container(ref, onHost, "/inside", "wait")
			im.checkSums(t, "data/", p.exec(id, "/inside", "sums", "/data"))

			m.pull(ref, true) // all of it is local then, and stays for its name
			var stats struct {
				Stats []struct {
					WritableLayer struct{ UsedBytes struct{ Value string } }
				}
			}
			unmarshal(t, []byte(k.do("stats", "-o", "json", id)), &stats)
			if len(stats.Stats) != 1 {
				t.Errorf("stats: %+v, want those of one container", stats)
			}

			s, err := m.status()
			if err != nil {
				t.Fatal(err)
			}
			kill9(t, s.Worker)
			m.waitNext(s.Supervisor, s.Worker)
			im.checkSums(t, "data/", p.exec(id, "/inside", "sums", "/data"))
			k.kill()
			k.start()
			im.checkSums(t, "data/", p.exec(id, "/inside", "sums", "/data"))
			// Of a layer that was there before, containerd's CRI asks again only
			// now (internal/cri/store/snapshot is filled once for what is committed).
			k.imageFSGrows(im.plainSize("data/"))

			unused := hub.put(t, "unused", newImage(t, gzipTar, base(t), someFiles(1801, "unused", 10)))
			k.do("pull", unused)
			k.do("rmi", "--prune")
			if list := k.do("images"); strings.Contains(list, "unused") || !strings.Contains(list, "pods") || !strings.Contains(list, "pause") {
				t.Errorf("after rmi --prune there are\n%s", list)
			}
			p.remove()
			k.emptyCRI()
			m.must(control.OpRmi, control.RemoveImagesArgs{Refs: []string{ref}}, nil)
			m.nothingLeftSoon()
		})
	}
}

// imageFSGrows waits until kubelet is told of more than want bytes: containerd
// adds up what snapshots hold once a second.
func (k *kubelet) imageFSGrows(want int64) {
	k.Helper()
	deadline := time.Now().Add(patience)
	for k.imageFS() < want {
		if time.Now().After(deadline) {
			k.Fatalf("imagefsinfo tells of %d bytes, the image has %d", k.imageFS(), want)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// imageFS is how many bytes kubelet is told that images take.
func (k *kubelet) imageFS() int64 {
	k.Helper()
	var info struct {
		Status struct {
			ImageFilesystems []struct{ UsedBytes struct{ Value string } }
		}
	}
	out := k.do("imagefsinfo")
	if err := json.Unmarshal([]byte(out), &info); err != nil || len(info.Status.ImageFilesystems) != 1 {
		k.Fatalf("imagefsinfo: %v: %s", err, out)
	}
	n, err := strconv.ParseInt(info.Status.ImageFilesystems[0].UsedBytes.Value, 10, 64)
	if err != nil {
		k.Fatalf("imagefsinfo: %s", out)
	}
	return n
}

// plainSize is how many bytes the files below top have.
func (im *image) plainSize(top string) (n int64) {
	for name, size := range im.sizes {
		if strings.HasPrefix(name, top) {
			n += size
		}
	}
	return n
}

// TestCRIUserNamespaces: pods with hostUsers: false, two mappings of one image.
func TestCRIUserNamespaces(t *testing.T) {
	t.Parallel()
	if _, err := findGCC(); err != nil {
		t.Skipf("needs a runc that knows id-mapped mounts, and to build one: %v", err)
	}
	hub := newHub(t)
	m := startServed(t, "")
	k := m.kubelet("c", kind{peer: peers.Containerd24}, hub.put(t, "pause", pauseImage(t)))
	im := newImage(t, gzipTar, base(t), append(someFiles(1810, "data", 30), reg("mine", noise(1811, 100)).owner(5, 6, 0o600)))
	ref := hub.put(t, "users", im)
	k.do("pull", ref)
	var pods []*pod
	for _, first := range []int{200_000, 400_000} {
		mapping := []object{{"host_id": first, "container_id": 0, "length": 65536}}
		namespaces := object{"network": 0, "userns_options": object{"mode": 0, "uids": mapping, "gids": mapping}}
		p := k.pod(namespaces)
		pods = append(pods, p)
		id := p.container(ref, namespaces, "/inside", "wait")
		im.checkSums(t, "data/", p.exec(id, "/inside", "sums", "/data"))
		if got, want := p.exec(id, "/inside", "owner", "/mine"), "5 6"; got != want {
			t.Errorf("the container sees the owner %s, want %s", got, want)
		}
		p.exec(id, "/inside", "change-owner", "/mine")
		if got, want := p.exec(id, "/inside", "users"), fmt.Sprintf("0 %d 65536", first); got != want {
			t.Errorf("the container's users are %q, want %q", got, want)
		}
	}
	for _, p := range pods {
		p.remove()
	}
	k.emptyCRI()
	m.nothingLeftSoon()
}

// TestCRIPrivate: an image that wants a password, which kubelet gives with the pull.
func TestCRIPrivate(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m := startServed(t, "")
	k := m.kubelet("c", kind{peer: peers.Containerd24}, hub.put(t, "pause", pauseImage(t)))
	im := newImage(t, gzipTar, base(t), someFiles(1820, "data", 30))
	ref := hub.put(t, "secret", im)
	hub.private("secret", "user", "secret")
	if _, err := k.try("pull", ref); err == nil {
		t.Error("a private image was pulled without a password")
	}
	k.do("pull", "--creds", "user:secret", ref)
	p := k.pod(onHost)
	id := p.container(ref, onHost, "/inside", "wait")
	im.checkSums(t, "data/", p.exec(id, "/inside", "sums", "/data"))
	p.remove()
	k.emptyCRI()
	m.nothingLeftSoon()
}
