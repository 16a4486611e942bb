package main

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/images"
	"github.com/snapfs/snapfs/internal/supervisor"
	"github.com/snapfs/snapfs/internal/telemetry"
	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/registry"
	"github.com/snapfs/snapfs/runtime/cgroups"
	"github.com/snapfs/snapfs/snapshotter"
)

// handle carries out one request of the control socket.
func (d *daemon) handle(ctx context.Context, r *control.Request) error {
	op, ok := operations[r.Op]
	if !ok {
		return &control.Error{Code: control.CodeUnsupported, Message: "this daemon knows no operation " + r.Op}
	}
	err := op(d, ctx, r)
	if isFull(err) {
		d.unkept(err)
	}
	return err
}

var operations = map[string]func(*daemon, context.Context, *control.Request) error{
	control.OpVersion: simple(func(d *daemon, _ context.Context, _ struct{}) (control.Version, error) { return d.version(), nil }),
	control.OpInfo:    simple((*daemon).info),
	control.OpStat:    simple(func(d *daemon, _ context.Context, _ struct{}) (map[string]int64, error) { return d.stat(), nil }),
	control.OpMetrics: simple(func(d *daemon, _ context.Context, _ struct{}) (string, error) {
		var t telemetry.Text
		d.metrics(&t)
		return t.String(), nil
	}),
	control.OpExplain: simple((*daemon).explain),
	control.OpTop:     (*daemon).serveTop,
	control.OpEvents:  (*daemon).serveEvents,
	control.OpStop:    simple(func(d *daemon, ctx context.Context, _ struct{}) (any, error) { return nil, d.w.StopDaemon(ctx) }),

	control.OpPull:   long((*daemon).pull),
	control.OpImages: simple(func(d *daemon, _ context.Context, _ struct{}) ([]control.Image, error) { return d.images.List() }),
	control.OpInspect: simple(func(d *daemon, _ context.Context, a control.RefArgs) (*control.ImageDetail, error) {
		return d.images.Inspect(a.Ref)
	}),
	control.OpRmi: simple(func(d *daemon, ctx context.Context, a control.RemoveImagesArgs) ([]control.Removed, error) {
		return d.images.Remove(ctx, a.Refs, a.Force)
	}),
	control.OpTag: simple(func(d *daemon, _ context.Context, a control.TagArgs) (any, error) {
		return nil, d.images.Tag(a.Src, a.Dst)
	}),
	control.OpPush: long(func(d *daemon, ctx context.Context, a control.PushArgs, p func(control.Progress)) (control.Pushed, error) {
		return d.images.Push(ctx, a, p)
	}),
	control.OpConvert: long(func(d *daemon, ctx context.Context, a control.ConvertArgs, p func(control.Progress)) (control.Pushed, error) {
		return d.images.Convert(ctx, a, p)
	}),

	control.OpIndex: long(func(d *daemon, ctx context.Context, a control.IndexArgs, p func(control.Progress)) (control.IndexInfo, error) {
		return d.images.MakeIndex(ctx, a, p)
	}),
	control.OpIndexes: simple(func(d *daemon, ctx context.Context, a control.IndexListArgs) ([]control.IndexInfo, error) {
		return d.images.ListIndexes(ctx, a)
	}),
	control.OpIndexSign: simple(func(d *daemon, ctx context.Context, a control.IndexSignArgs) (control.IndexInfo, error) {
		return d.images.SignIndex(ctx, a)
	}),
	control.OpKeygen: simple(func(_ *daemon, _ context.Context, a control.KeygenArgs) (control.Key, error) {
		return images.Keygen(a)
	}),

	control.OpMount:   long((*daemon).prepareMount),
	control.OpMounted: simple(func(d *daemon, _ context.Context, m control.Mount) (any, error) { return nil, d.images.RecordMount(m) }),
	control.OpMounts:  simple(func(d *daemon, _ context.Context, _ struct{}) ([]control.Mount, error) { return d.images.Mounts() }),
	control.OpUmount: simple(func(d *daemon, _ context.Context, m control.Mount) (any, error) {
		return nil, d.images.ForgetMount(m.Target)
	}),

	control.OpCreate: long(func(d *daemon, ctx context.Context, a control.CreateArgs, p func(control.Progress)) (*control.Created, error) {
		return d.containers.Create(ctx, a, p)
	}),
	control.OpPlan: long(func(d *daemon, ctx context.Context, a control.CreateArgs, p func(control.Progress)) (*control.Planned, error) {
		return d.containers.Plan(ctx, a, p)
	}),
	control.OpStart: simple(func(d *daemon, ctx context.Context, a control.ContainerArgs) (*control.Created, error) {
		return d.containers.Start(ctx, a.ID)
	}),
	control.OpPs: simple(func(d *daemon, _ context.Context, a control.PsArgs) ([]control.Container, error) {
		return d.containers.List(a.All), nil
	}),
	control.OpResolve: simple(func(d *daemon, _ context.Context, a control.ContainerArgs) (control.Container, error) {
		return d.containers.Resolve(a.ID)
	}),
	control.OpCInsp: simple((*daemon).inspectContainer),
	control.OpLogs:  (*daemon).logs,
	control.OpPool:  simple((*daemon).pool),
	control.OpRm: simple(func(d *daemon, ctx context.Context, a control.RemoveContainerArgs) (control.Container, error) {
		return d.containers.Remove(ctx, a.ID, a.Force)
	}),
}

// simple makes an operation of a function from arguments to a result.
func simple[A, R any](f func(*daemon, context.Context, A) (R, error)) func(*daemon, context.Context, *control.Request) error {
	return func(d *daemon, ctx context.Context, r *control.Request) error {
		var a A
		if len(r.Args) > 0 {
			if err := r.Decode(&a); err != nil {
				return err
			}
		}
		result, err := f(d, ctx, a)
		if err != nil {
			return err
		}
		return r.Reply(result)
	}
}

// long is simple for a function that reports its progress.
func long[A, R any](f func(*daemon, context.Context, A, func(control.Progress)) (R, error)) func(*daemon, context.Context, *control.Request) error {
	return func(d *daemon, ctx context.Context, r *control.Request) error {
		return simple(func(d *daemon, ctx context.Context, a A) (R, error) {
			return f(d, ctx, a, func(p control.Progress) { r.Event(p) }) // a client that is gone ends ctx
		})(d, ctx, r)
	}
}

// code gives errors of the packages below their code on the wire.
func code(err error) string {
	switch {
	case errors.Is(err, images.ErrInUse):
		return control.CodeInUse
	case errors.Is(err, images.ErrQuarantined):
		return control.CodeQuarantined
	case errors.Is(err, supervisor.ErrNoSupervisor):
		return control.CodeUnavailable
	case errors.Is(err, fs.ErrNotExist):
		return control.CodeNotFound
	case errors.Is(err, fs.ErrPermission):
		return control.CodeDenied
	case errors.Is(err, fs.ErrExist):
		return control.CodeExists
	case errors.Is(err, fs.ErrInvalid), errors.Is(err, images.ErrAmbiguous), errors.Is(err, registry.ErrProtocol):
		return control.CodeInvalid
	case errors.Is(err, registry.ErrUnavailable):
		return control.CodeUnavailable
	case errors.Is(err, errors.ErrUnsupported):
		return control.CodeUnsupported
	}
	if _, ok := errors.AsType[*layers.DigestError](err); ok {
		return control.CodeInvalid
	}
	return ""
}

func (d *daemon) version() control.Version {
	v := control.Version{Version: version, Go: runtime.Version(), Protocol: control.Protocol, Pid: os.Getpid()}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				v.Commit = s.Value
			}
		}
	}
	return v
}

func (d *daemon) info(ctx context.Context, _ struct{}) (control.Info, error) {
	kernel, err := mounts.Probe(d.c.Root)
	if err != nil {
		return control.Info{}, err
	}
	i := control.Info{
		Version: d.version(), Root: d.c.Root, Run: d.c.Run, Kernel: kernel.Release, Features: map[string]string{},
		Images:     d.images.Count(),
		Supervisor: d.w.Supervisor, Worker: os.Getpid(), Restarts: d.w.Restarts,
	}
	if i.Cgroup, err = cgroups.Mode(); err != nil {
		return i, err
	}
	for _, f := range kernel.Facts {
		i.Features[f.Name] = f.String()
	}
	i.Backend = d.w.Backend
	for _, c := range d.containers.List(true) {
		i.Containers++
		if c.Pid != 0 {
			i.Running++
		}
	}
	for _, c := range d.containerds {
		i.Containerd = append(i.Containerd, c.info())
	}
	m, err := d.images.Mounts()
	i.Mounts = len(m)
	return i, err
}

// prepareMount makes an image ready to be mounted by the client at a.Target.
func (d *daemon) prepareMount(ctx context.Context, a control.MountArgs, p func(control.Progress)) (control.Mount, error) {
	if (a.Upper == "") != (a.Work == "") {
		return control.Mount{}, &control.Error{Code: control.CodeInvalid, Message: "an upper directory needs a work directory beside it, and the other way round"}
	}
	policy := a.Policy
	if policy == "" {
		policy = images.PullMissing
	}
	k, release, err := d.images.Use(ctx, control.PullArgs{Ref: a.Ref, Platform: a.Platform, Policy: policy}, p)
	if err != nil {
		return control.Mount{}, err
	}
	rootfs, err := d.images.Rootfs(ctx, k, false)
	if err != nil {
		release()
		return control.Mount{}, err
	}
	d.images.Prepared(a.Target, release)
	rootfs.Upper, rootfs.Work, rootfs.ReadOnly = a.Upper, a.Work, a.Upper == ""
	d.images.Complete(k)
	return control.Mount{ID: k.Tree[:12], Ref: k.Ref, Target: a.Target, Rootfs: rootfs}, nil
}

func (d *daemon) inspectContainer(_ context.Context, a control.ContainerArgs) (json.RawMessage, error) {
	config, row, err := d.containers.Inspect(a.ID)
	if err != nil {
		return nil, err
	}
	return json.Marshal(struct {
		control.Container
		Config any
	}{row, config})
}

func (d *daemon) logs(_ context.Context, r *control.Request) error {
	var a control.ContainerArgs
	if err := r.Decode(&a); err != nil {
		return err
	}
	f, row, err := d.containers.OpenLog(a.ID)
	if err != nil {
		return err
	}
	defer f.Close()
	return r.Reply(row, f)
}

// stats adds the counters of the Stats structs of all parts.
func (d *daemon) stats(m map[string]int64) {
	for part, stats := range map[string]any{"objectfs": &d.fs.Stats, "fetch": d.fetcher.Stats(), "registry": &d.counts, "content": &d.contents} {
		flatten(m, part, stats)
	}
}

// stat gathers the counters of all parts. Names are PART.WHAT; sizes are bytes.
func (d *daemon) stat() map[string]int64 {
	m := map[string]int64{
		"worker.pid": int64(os.Getpid()), "worker.restarts": int64(d.w.Restarts), "worker.goroutines": int64(runtime.NumGoroutine()),
		"objectfs.nodes": int64(d.nodes.Len()),
	}
	for name, pid := range map[string]int{"worker": os.Getpid(), "supervisor": d.w.Supervisor} {
		m[name+".rss"] = residentBytes(pid)
	}
	d.stats(m)
	d.eachSnapshots(func(name string, s *snapshotter.Stats) { flatten(m, "snapshots-"+name, s) })
	var st unix.Statfs_t
	if err := syscall.Access(filepath.Clean(d.c.Root), 0); err == nil && unix.Statfs(d.c.Root, &st) == nil {
		m["disk.free"] = int64(st.Bavail) * st.Bsize
	}
	return m
}
