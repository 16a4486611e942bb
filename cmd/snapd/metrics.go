package main

import (
	"cmp"
	"maps"
	"os"
	goruntime "runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/telemetry"
)

// counterNames say how the counters of Stats structs are called as metrics, where
// PART_FIELD_total does not say it, and what they mean. One that is not here is told all the same.
var counterNames = map[string][2]string{
	"fetch.reads":    {"", "Reads of objects that the kernel does not serve by itself."},
	"fetch.misses":   {"", "Reads that had to wait for the network."},
	"fetch.waits":    {"", "Reads that waited for a chunk which somebody else had asked for."},
	"fetch.served":   {"fetch_served_bytes_total", "Bytes that readers got."},
	"fetch.requests": {"", "Ranges asked of registries."},
	"fetch.fetched":  {"fetch_received_bytes_total", "Stored (compressed) bytes of layers that came."},
	"fetch.kept":     {"fetch_kept_bytes_total", "Plain bytes that went into the store."},
	"fetch.inserted": {"fetch_delivered_bytes_total", "Of these, bytes that came with a boot bundle."},
	"fetch.late":     {"", "Chunks that a boot bundle was to bring, and that were fetched after all."},
	"fetch.unkept":   {"", "Chunks that could not be stored."},
	"fetch.errors":   {"", "Reads that failed."},
	"fetch.lies":     {"", "Objects of a layer with other bytes than promised."},

	"content.promised": {"", "Blobs that containerd was told are in its content store, and that are in a registry."},
	"content.fetched":  {"", "Of these, blobs that came because somebody read them."},
	"content.bytes":    {"content_received_bytes_total", "Stored bytes that came for that."},
	"content.resumed":  {"", "Fetches of blobs that went on where an earlier one had ended."},
	"content.failed":   {"", "Fetches of blobs that came to nothing."},

	"registry.requests":     {"", "HTTP requests, without those for tokens."},
	"registry.bytes":        {"registry_received_bytes_total", "Body bytes received."},
	"registry.sent":         {"registry_sent_bytes_total", "Body bytes pushed."},
	"registry.retries":      {"", "HTTP requests that repeated a failed one."},
	"registry.failovers":    {"", "Times that another host was asked instead."},
	"registry.refreshes":    {"", "Tokens replaced because they were refused."},
	"registry.redirects":    {"", "Redirects followed."},
	"registry.stalls":       {"", "HTTP requests given up because nothing came."},
	"registry.rangeignored": {"registry_ranges_ignored_total", "Ranges that were answered with the whole blob."},

	"objectfs.lookups":     {"", "FUSE LOOKUPs."},
	"objectfs.missing":     {"", "FUSE LOOKUPs of what is not there."},
	"objectfs.attrs":       {"", "FUSE GETATTRs."},
	"objectfs.reads":       {"", "FUSE READs."},
	"objectfs.bytes":       {"objectfs_read_bytes_total", "Bytes answered to FUSE READs."},
	"objectfs.interrupted": {"", "FUSE READs that were interrupted."},
	"objectfs.left":        {"", "FUSE READs left to the next worker."},
	"objectfs.fails":       {"objectfs_errors_total", "FUSE READs answered with an error, such as EIO."},
	"objectfs.panics":      {"", "FUSE requests that panicked."},
	"objectfs.invalidated": {"", "Objects of which the kernel was told to drop its pages."},
	"objectfs.requests":    {"", "FUSE requests of every kind."},
}

// prefix begins the name of every metric that is our own.
const prefix = "snapfs_"

// metrics writes all metrics.
func (d *daemon) metrics(t *telemetry.Text) {
	t.Family(prefix+"build_info", telemetry.Gauge, "Always 1.")
	v := d.version()
	t.Sample(1, "version", v.Version, "commit", v.Commit, "go", v.Go)
	d.processMetrics(t)
	d.imageMetrics(t)
	d.containerdMetrics(t)
	d.poolMetrics(t)

	d.forget()
	all := d.meter.All.Sum()
	t.Histogram(prefix+"miss_seconds", "How long reads waited for the network.", &all.Took)
	t.One(prefix+"miss_bytes_total", telemetry.Counter, "Bytes that readers got after they had waited for the network.", float64(all.Bytes))
	t.Family(prefix+"fetch_queue", telemetry.Gauge, "Requests for ranges, by class and by whether they are under way (open) or wait for their turn (waiting).")
	for _, q := range d.fetcher.Queues() {
		t.Sample(float64(q.Waiting), "class", q.Class, "state", "waiting")
		t.Sample(float64(q.Open), "class", q.Class, "state", "open")
	}
	stats := map[string]int64{}
	d.stats(stats)
	for _, name := range slices.Sorted(maps.Keys(stats)) {
		c := counterNames[name]
		t.One(prefix+cmp.Or(c[0], strings.ReplaceAll(name, ".", "_")+"_total"), telemetry.Counter, c[1], float64(stats[name]))
	}
}

func (d *daemon) processMetrics(t *telemetry.Text) {
	t.One(prefix+"worker_restarts_total", telemetry.Counter, "Workers that died and were replaced since the supervisor started.", float64(d.w.Restarts))
	t.Family(prefix+"resident_memory_bytes", telemetry.Gauge, "Resident memory by process.")
	t.Sample(float64(residentBytes(d.w.Supervisor)), "process", "supervisor")
	t.Sample(float64(residentBytes(os.Getpid())), "process", "worker")
	t.One("process_resident_memory_bytes", telemetry.Gauge, "Resident memory of the worker.", float64(residentBytes(os.Getpid())))
	t.Time("process_start_time_seconds", "When the worker started, Unix time.", d.started)
	t.One("go_goroutines", telemetry.Gauge, "Goroutines of the worker.", float64(goruntime.NumGoroutine()))
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) == nil {
		cpu := time.Duration(u.Utime.Nano() + u.Stime.Nano())
		t.One("process_cpu_seconds_total", telemetry.Counter, "Processor time of the worker.", cpu.Seconds())
	}
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		t.One("process_open_fds", telemetry.Gauge, "Open descriptors of the worker.", float64(len(fds)-1)) // without the one that looks
	}
	var st unix.Statfs_t
	if unix.Statfs(d.c.Root, &st) == nil {
		t.One(prefix+"disk_free_bytes", telemetry.Gauge, "Room left on the file system of the state.", float64(int64(st.Bavail)*st.Bsize))
	}
}

func (d *daemon) imageMetrics(t *telemetry.Text) {
	v, err := d.images.Survey()
	if err != nil {
		d.log.Error("survey of the images", "err", err)
		return
	}
	t.Family(prefix+"images", telemetry.Gauge, "Images: all, those that can be used before they are local, those that are local, those whose index has lied.")
	for _, row := range []struct {
		state string
		n     int
	}{{"all", v.Images}, {"lazy", v.Lazy}, {"complete", v.Complete}, {"quarantined", v.Quarantined}} {
		t.Sample(float64(row.n), "state", row.state)
	}
	t.One(prefix+"image_names", telemetry.Gauge, "References of images.", float64(v.Names))
	t.One(prefix+"layer_bytes", telemetry.Gauge, "Stored (compressed) bytes of the layers of all images.", float64(v.Size))
	t.One(prefix+"layer_local_bytes", telemetry.Gauge, "Of these, bytes that need not be fetched any more.", float64(v.Local))
	if m, err := d.images.Mounts(); err == nil {
		t.One(prefix+"mounts", telemetry.Gauge, "Images mounted by snapctl mount.", float64(len(m)))
	}
	t.Family(prefix+"containers", telemetry.Gauge, "Containers by status.")
	n := map[string]int{"running": 0}
	for _, c := range d.containers.List(true) {
		n[c.Status]++
	}
	for _, status := range slices.Sorted(maps.Keys(n)) {
		t.Sample(float64(n[status]), "status", status)
	}
	t.One(prefix+"objectfs_nodes", telemetry.Gauge, "Objects that the kernel has been told a node of.", float64(d.nodes.Len()))
}
