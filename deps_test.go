package snapfs_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/snapfs/snapfs"

// rules say what a package, and all it imports, must not reach, and why.
var rules = []struct{ from, not, why string }{
	{"layers", module + "/fs", "imports point down: layers know no file system"},
	{"layers/...", module + "/fs", "imports point down"},
	{"layers/...", module + "/internal", "imports point down"},
	{"layers/...", module + "/runtime", "imports point down"},
	{"layers/index", "net/http", "a format, and its bytes come from whoever has them; snapctl links it"},
	{"layers/trust", "net/http", "snapctl signs and verifies"},
	{"layers/trust", "golang.org/x/crypto", "ed25519 and PEM are the standard library's; snapctl links it"},
	{"fs", module + "/internal", "imports point down"},
	{"fs/plain", module + "/internal", "imports point down"},
	{"fs/erofs", "github.com/hanwen/go-fuse", "only fs/objectfs serves FUSE"},
	{"fs/mounts", "net/http", "every monitor links it"},
	{"fs/mounts", "github.com/hanwen/go-fuse", "every monitor links it"},
	{"fs/mounts", "github.com/containerd", "every monitor links it"},
	{"runtime", module + "/layers", "the runner knows neither images nor layers"},
	{"runtime", module + "/fs", "the runner gets its root file system as a descriptor"},
	{"runtime", module + "/internal", "the runner is a library of its own"},
	{"runtime/oci", "net/http", "snapctl is this command line too, and starts in two milliseconds"},
	{"runtime/oci", "github.com/containerd", "only its tests speak with containerd's libraries"},
	{"runtime/...", "github.com/godbus", "every start and every monitor links it: runtime/systemd says the few messages itself"},
	{"runtime/monitor", module + "/layers", "the runner knows neither images nor layers"},
	{"runtime/monitor", "net/http", "there is one for every container: it has to be small"},
	{"runtime/monitor", "google.golang.org/grpc", "there is one for every container: it has to be small"},
	{"snapshotter/...", module + "/internal", "what it needs of the book it says in interfaces"},
	{"internal/images", module + "/snapshotter", "internal/snapshots joins the two"},
	{"internal/events", "net/http", "snapctl and monitors may know events"},
	{"internal/control", "net/http", "snapctl starts in two milliseconds"},
	{"cmd/snapctl", "go.opentelemetry.io", "snapctl starts in two milliseconds"},
	{"cmd/snapd", "github.com/grpc-ecosystem", "spans go by HTTP: gRPC and its gateway are 5.5 MB of snapd, and 4 MB of memory in each process"},
	{"cmd/snapd", "k8s.io", "the kubelet's messages pass as bytes; only tests know its types"},
	{"cmd/snapd", "github.com/prometheus", "metrics are written without a library, and only tests read them with one"},
	{"cmd/snapctl", "google.golang.org/grpc", "snapctl starts in two milliseconds"},
	{"cmd/snapctl", "github.com/containerd/containerd", "snapctl starts in two milliseconds"},
	{"cmd/snapctl", "net/http", "snapctl starts in two milliseconds"},
	{"cmd/snapctl", "github.com/hanwen/go-fuse", "snapctl serves nothing"},
	{"cmd/snapctl", "github.com/vishvananda/netlink", "the daemon connects containers"},
	{"cmd/snapctl", "github.com/google/nftables", "the daemon connects containers"},
	{"internal/userns", module + "/internal/containers", "snapctl links it, and it knows no containers"},
	{"cmd/snapctl", "github.com/containernetworking", "the daemon's supervisor runs plugins"},
	{"cmd/snapctl", "tags.cncf.io", "devices are described to the daemon"},
	{"runtime/...", "tags.cncf.io", "a spec's annotations name no devices: who makes the spec puts them in"},
	{"internal/cni", module + "/internal/containers", "it knows no containers, but IDs"},
	{"internal/cni", "github.com/vishvananda/netlink", "plugins make links"},
	{"internal/network", module + "/internal/containers", "it knows no containers, but IDs"},
}

// TestImports holds the table of who may import whom.
func TestImports(t *testing.T) {
	for _, r := range rules {
		list := exec.CommandContext(t.Context(), "go", "list", "-f", `{{.ImportPath}}{{range .Deps}} {{.}}{{end}}`, "./"+r.from)
		out, err := list.Output()
		if err != nil {
			t.Fatalf("go list ./%s: %v", r.from, err)
		}
		for line := range strings.Lines(string(out)) {
			deps := strings.Fields(line)
			i := slices.IndexFunc(deps[1:], func(d string) bool {
				return d == r.not || strings.HasPrefix(d, r.not+"/") || strings.HasPrefix(r.not, "github.com/containerd") && strings.HasPrefix(d, r.not)
			})
			if i >= 0 && deps[0] != r.not && !strings.HasPrefix(deps[0], r.not+"/") {
				t.Errorf("%s reaches %s: %s", deps[0], deps[i+1], r.why)
			}
		}
	}
}

// TestOnlyOneImporter: some modules have one place.
func TestOnlyOneImporter(t *testing.T) {
	for pkg, allowed := range map[string][]string{
		"github.com/hanwen/go-fuse/v2/fuse": {module + "/fs/objectfs"},
		// Who serves containerd, and who asks it.
		"google.golang.org/grpc": {module + "/snapshotter", module + "/cmd/snapd", module + "/internal/rpc", module + "/internal/cri", module + "/internal/node"},
		// internal/telemetry listens for scrapers and sends spans, if it is configured to.
		"github.com/vishvananda/netlink":                  {module + "/internal/network"},
		"github.com/google/nftables":                      {module + "/internal/network"},
		"github.com/containernetworking/cni/libcni":       {module + "/internal/cni"},
		"tags.cncf.io/container-device-interface/pkg/cdi": {module + "/internal/cdi"},
		"net/http": {module + "/layers/registry", module + "/internal/telemetry", module + "/internal/images/imagestest", module + "/bench/"},
	} {
		out, err := exec.CommandContext(t.Context(), "go", "list", "-f", `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}`, "./...").Output()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(out)) {
			imports := strings.Fields(line)
			ok := slices.ContainsFunc(allowed, func(a string) bool { return strings.HasPrefix(imports[0], a) })
			if slices.Contains(imports[1:], pkg) && !ok {
				t.Errorf("%s imports %s: that is for %v", imports[0], pkg, allowed)
			}
		}
	}
}
