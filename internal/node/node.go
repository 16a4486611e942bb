package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	introspection "github.com/containerd/containerd/api/services/introspection/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	coreimages "github.com/containerd/containerd/v2/core/images"
	ssproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/snapshotter/entries"
)

// A Node is a machine that is to be diagnosed.
type Node struct {
	Options        // of them, Version is found out
	Program string // containerd: a name in PATH, or a path
	Config  string // its configuration file; "": its default
	Address string // its socket; "": as configured
	Control string // snapd's control socket
	Most    int    // images that are looked into; 0: 500
	// Run runs a program and returns what it prints to stdout, also with an error.
	Run func(ctx context.Context, name string, args ...string) ([]byte, error)
	// Units are systemd's units that should start snapd; none if there is no systemd.
	Units []string
}

const (
	programTimeout = 20 * time.Second // for containerd to print something
	callTimeout    = 10 * time.Second // for a daemon to answer
	k8s            = "k8s.io"         // CRI's namespace
)

// Check looks at everything, and goes on after what is wrong.
func Check(ctx context.Context, n Node) []Finding {
	if n.Name == "" {
		n.Name = Name
	}
	if n.Most == 0 {
		n.Most = 500
	}
	r := &report{}
	r.kernel(n.Root)
	r.snapd(ctx, n)
	r.units(ctx, n)
	if !r.program(ctx, &n) {
		return r.all
	}
	dump, err := n.dump(ctx)
	if err != nil {
		r.fail("see the message", "containerd config dump: %v", err)
		return r.all
	}
	r.all = append(r.all, CheckConfig(dump, n.Options)...)
	s, err := parseDump(dump)
	if err != nil {
		return r.all // CheckConfig has said so
	}
	n.Address = cmp.Or(n.Address, s.address(), "/run/containerd/containerd.sock")
	r.running(ctx, n, s)
	return r.all
}

// FindVersion asks the program for its version.
func (n Node) FindVersion(ctx context.Context) (Version, error) {
	ctx, cancel := context.WithTimeout(ctx, programTimeout)
	defer cancel()
	out, err := n.Run(ctx, n.Program, "--version")
	if err != nil {
		return Version{}, fmt.Errorf("%s --version: %w", n.Program, err)
	}
	return ParseVersion(string(out))
}

func (n Node) dump(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, programTimeout)
	defer cancel()
	args := []string{"config", "dump"}
	if n.Config != "" {
		args = append([]string{"--config", n.Config}, args...)
	}
	return n.Run(ctx, n.Program, args...)
}

func (r *report) kernel(root string) {
	k, err := mounts.Probe(root)
	if errors.Is(err, os.ErrNotExist) {
		k, err = mounts.Probe(os.TempDir())
	}
	if err == nil {
		_, err = k.Backend(mounts.BackendErofs)
	}
	switch {
	case errors.Is(err, os.ErrPermission):
		r.fail("run this as root", "what this kernel can do cannot be found out: %v", err)
	case err != nil:
		r.fail("Linux 6.16 or later, with EROFS and overlayfs; snapctl info shows what is missing", "%v", err)
	default:
		r.ok("Linux %s can mount images", k.Release)
	}
}

func (r *report) snapd(ctx context.Context, n Node) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var v control.Version
	if _, err := control.Call(ctx, n.Control, control.OpVersion, nil, &v, nil); err != nil {
		r.fail("start it: systemctl start snapfs, or snapctl daemon start", "snapd does not answer: %v", err)
		return
	}
	r.ok("snapd %s is running", v.Version)
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", n.Socket)
	if err != nil {
		r.fail("see [[containerd]] in snapd's configuration, and restart snapd", "snapd does not serve containerd at %s: %v", n.Socket, err)
		return
	}
	c.Close()
	r.ok("snapd serves containerd at %s", n.Socket)
}

// units finds out whether snapd comes back with the machine.
func (r *report) units(ctx context.Context, n Node) {
	if len(n.Units) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for _, unit := range n.Units {
		// is-enabled fails where it is not, and prints why.
		out, err := n.Run(ctx, "systemctl", "is-enabled", unit)
		switch state := strings.TrimSpace(string(out)); {
		case err == nil:
			r.ok("%s is %s", unit, state)
		case state == "disabled" || state == "indirect":
			r.warn("systemctl enable "+unit, "%s is %s: after the next boot containerd finds no snapd", unit, state)
		case state == "":
			r.warn("install the units that come with snapfs", "%s is not installed: after the next boot containerd finds no snapd", unit)
		default:
			r.warn("see systemctl status "+unit, "%s is %s", unit, state)
		}
	}
}

func (r *report) program(ctx context.Context, n *Node) bool {
	v, err := n.FindVersion(ctx)
	switch {
	case err != nil:
		r.fail("say with --containerd where it is", "no containerd: %v", err)
		return false
	case !v.atLeast(Oldest.Major, Oldest.Minor):
		r.fail("containerd 2.4, or at least "+Oldest.String(), "containerd %v is too old", v)
		return false
	case !v.staged():
		r.ok("containerd %v (from 2.4 on layers are prepared side by side)", v)
	default:
		r.ok("containerd %v", v)
	}
	n.Version = v
	return true
}

// running looks at the containerd that runs, which may not be as the files say.
func (r *report) running(ctx context.Context, n Node, s *settings) {
	conn, err := grpc.NewClient("unix:"+n.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		r.fail("say with --address where it is", "containerd's socket %q: %v", n.Address, err)
		return
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 6*callTimeout) // for all images of a node
	defer cancel()
	vr, err := versionapi.NewVersionClient(conn).Version(ctx, &emptypb.Empty{})
	if err != nil {
		r.fail("start it", "containerd does not answer at %s: %v", n.Address, errgrpc.ToNative(err))
		return
	}
	if v, err := ParseVersion(vr.GetVersion()); err == nil && v != n.Version {
		r.warn("restart containerd", "containerd %v is running, and %v is installed", v, n.Version)
	} else {
		r.ok("containerd is running")
	}
	p, err := introspection.NewIntrospectionClient(conn).Plugins(ctx, &introspection.PluginsRequest{})
	if err != nil {
		r.fail("see containerd's log", "containerd does not tell its plugins: %v", errgrpc.ToNative(err))
		return
	}
	r.plugins(p.GetPlugins(), n, s)
	backing, err := entries.Ask(ctx, conn, n.Socket)
	if err != nil {
		r.fail("see containerd's log", "containerd does not tell its content store: %v", err)
		return
	}
	if want := s.contentProxies(); len(want) > 0 && backing == entries.Other {
		r.warn("restart containerd", "the content store of the containerd that runs is not the configured one")
	}
	l := look{conn: conn, store: proxy.NewContentStore(conn)}
	r.pause(ctx, l, n, s)
	r.contents(ctx, l, n.Most, backing, OwnContent(s.text("root")))
}

// plugins compares the plugins that run with those that are configured.
func (r *report) plugins(all []*introspection.Plugin, n Node, s *settings) {
	want := s.table("proxy_plugins", n.Name)
	if want == nil {
		return
	}
	for _, p := range all {
		if p.GetType() != "io.containerd.snapshotter.v1" || p.GetID() != n.Name {
			continue
		}
		switch {
		case p.GetInitErr() != nil:
			r.fail("see containerd's log", "plugin %s: %s", n.Name, p.GetInitErr().GetMessage())
		case p.GetExports()["address"] != fmt.Sprint(want["address"]) || !sameList(p.GetCapabilities(), want["capabilities"]):
			r.warn("restart containerd", "the plugin %s that runs has not the configured settings", n.Name)
		default:
			r.ok("containerd has loaded the plugin %s", n.Name)
		}
		return
	}
	r.fail("restart containerd", "the containerd that runs has not loaded the plugin %s", n.Name)
}

func sameList(a []string, b any) bool {
	list, _ := b.([]any)
	if len(a) != len(list) {
		return false
	}
	for i := range a {
		if list[i] != a[i] {
			return false
		}
	}
	return true
}

// OwnContent is where a containerd with this root has its own content store.
func OwnContent(root string) string { return filepath.Join(root, pluginContent) }

// A look is a look into containerd's images.
type look struct {
	conn  *grpc.ClientConn
	store content.Store
}

// pause finds out whether the image of pods' first containers is on the snapshotter
// that pods are started on: if it was pulled for another one, no pod starts.
func (r *report) pause(ctx context.Context, l look, n Node, s *settings) {
	name := s.sandbox()
	if name == "" || !s.cri() || s.text(s.images("snapshotter")...) != n.Name {
		return
	}
	ctx = namespaces.WithNamespace(ctx, k8s)
	im, err := imagesapi.NewImagesClient(l.conn).Get(ctx, &imagesapi.GetImageRequest{Name: name})
	if err = errgrpc.ToNative(err); errdefs.IsNotFound(err) {
		r.ok("the pause image %s is not pulled yet", name)
		return
	}
	if err == nil {
		var on bool
		if on, err = l.unpacked(ctx, im.GetImage(), n.Name); err == nil {
			if on {
				r.ok("the pause image is unpacked on %s", n.Name)
			} else {
				r.fail(fmt.Sprintf("crictl rmi %s; the next pod pulls it anew", name), "the pause image %s was pulled for another snapshotter: no pod starts", name)
			}
			return
		}
	}
	r.warn(fmt.Sprintf("crictl rmi %s; the next pod pulls it anew", name), "the pause image %s: %v", name, err)
}

// unpacked tells whether an image is unpacked on a snapshotter, for this machine.
func (l look) unpacked(ctx context.Context, im *imagesapi.Image, snapshotter string) (bool, error) {
	t := im.GetTarget()
	target := ocispec.Descriptor{MediaType: t.GetMediaType(), Digest: digest.Digest(t.GetDigest()), Size: t.GetSize()}
	m, err := coreimages.Manifest(ctx, bounded{l.store}, target, platforms.Default())
	if err != nil {
		return false, err
	}
	raw, err := content.ReadBlob(ctx, bounded{l.store}, m.Config)
	if err != nil {
		return false, err
	}
	var config ocispec.Image
	if err := json.Unmarshal(raw, &config); err != nil {
		return false, fmt.Errorf("config %s: %w", m.Config.Digest, err)
	}
	chain := identity.ChainID(config.RootFS.DiffIDs)
	_, err = ssproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(l.conn), snapshotter).Stat(ctx, chain.String())
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// bounded refuses documents that are too large to be any.
type bounded struct{ content.Provider }

func (b bounded) ReaderAt(ctx context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	r, err := b.Provider.ReaderAt(ctx, d)
	if err == nil && r.Size() > layers.MaxManifest {
		return nil, errors.Join(fmt.Errorf("document %s: %w", d.Digest, layers.ErrTooLarge), r.Close())
	}
	return r, err
}

// contents counts the images of which containerd's content store lacks layers.
func (r *report) contents(ctx context.Context, l look, most int, is entries.Backing, root string) {
	ns, err := namespacesapi.NewNamespacesClient(l.conn).List(ctx, &namespacesapi.ListNamespacesRequest{})
	if err != nil {
		r.warn("see containerd's log", "namespaces: %v", errgrpc.ToNative(err))
		return
	}
	seen, lacking, headless, example := 0, 0, 0, ""
	for _, n := range ns.GetNamespaces() {
		ctx := namespaces.WithNamespace(ctx, n.GetName())
		all, err := imagesapi.NewImagesClient(l.conn).List(ctx, &imagesapi.ListImagesRequest{})
		if err != nil {
			r.warn("see containerd's log", "images in %s: %v", n.GetName(), errgrpc.ToNative(err))
			continue
		}
		for _, im := range all.GetImages() {
			if seen++; seen > most {
				break
			}
			missing, err := l.missing(ctx, im)
			switch {
			case errdefs.IsNotFound(err):
				headless++
				example = fmt.Sprintf("%s in %s", im.GetName(), n.GetName())
			case err != nil:
				r.warn("pull it again", "image %s in %s: %v", im.GetName(), n.GetName(), err)
			case missing > 0:
				lacking++
				example = fmt.Sprintf("%s in %s lacks %d", im.GetName(), n.GetName(), missing)
			}
		}
	}
	switch {
	case headless > 0:
		r.fail(`[[containerd]] content = "`+root+`" in snapd's configuration, if these are in containerd's own store; or pull them again`,
			"containerd's content store lacks the manifests of %d images (%s): was it another one when they were pulled?", headless, example)
	case lacking == 0:
		r.ok("containerd's content store has the layers of all %d images that were looked at", min(seen, most))
	case is == entries.Shared:
		r.warn("restart snapd, which looks after them; or ctr content fetch IMAGE", "containerd's content store lacks layers of %d images (%s)", lacking, example)
	default:
		r.warn("snapctl containerd config --write --content, then restart containerd; or ctr content fetch IMAGE, which downloads them",
			"containerd's content store lacks layers of %d images (%s): they cannot be pushed, exported or unpacked elsewhere", lacking, example)
	}
}

// missing counts layers of an image, for this machine, that have no entry. The
// error is ErrNotFound if its manifest is not there.
func (l look) missing(ctx context.Context, im *imagesapi.Image) (n int, err error) {
	t := im.GetTarget()
	target := ocispec.Descriptor{MediaType: t.GetMediaType(), Digest: digest.Digest(t.GetDigest()), Size: t.GetSize()}
	m, err := coreimages.Manifest(ctx, bounded{l.store}, target, platforms.Default())
	if err != nil {
		return 0, err
	}
	for _, d := range m.Layers {
		if _, err := l.store.Info(ctx, d.Digest); errdefs.IsNotFound(err) {
			n++
		} else if err != nil {
			return n, err
		}
	}
	return n, nil
}
