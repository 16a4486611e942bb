package main

import (
	"context"
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/events"
	"github.com/snapfs/snapfs/layers"
)

// serveEvents streams what has happened, and what does. Filters are the
// daemon's work, so that a client that wants little is not kept busy.
func (d *daemon) serveEvents(ctx context.Context, r *control.Request) error {
	var a control.EventsArgs
	if len(r.Args) > 0 {
		if err := r.Decode(&a); err != nil {
			return err
		}
	}
	err := d.events.Serve(ctx, a, func(e control.Event) error { return r.Event(e) })
	if ctx.Err() != nil { // not the client's end, of which it need not be told
		return &control.Error{Code: control.CodeUnavailable, Message: "the daemon stops, or its worker is replaced"}
	}
	return err
}

// begun tells that this worker serves, and whether it took over from one that died.
func (d *daemon) begun() {
	e := control.Event{Type: events.Daemon, Action: events.Start, ID: strconv.Itoa(os.Getpid()), Attributes: events.Attrs("version", version)}
	if d.w.Restarts > 0 {
		e.Action = events.Replaced
		e.Attributes["restarts"] = strconv.Itoa(d.w.Restarts)
	}
	d.events.Emit(e)
}

// burst is how long what happens in bursts is told of once: a reader that
// fails tries again, and a full disk fails every chunk.
const burst = 10 * time.Second

// readFailed tells that a read in a container, or of a mount, got an error.
func (d *daemon) readFailed(s layers.Sum, off int64, err error) {
	d.events.EmitOnce(burst, control.Event{Type: events.Fetch, Action: events.EIO, ID: string(s.Digest())}, func() map[string]string {
		return events.Attrs("image", d.imagesWith(append(d.fetcher.Holders(s), d.images.Aliases(s)...)), "off", off, "error", err)
	})
	d.images.Failed(s, err)
}

// lied tells that a layer has other bytes than its index promises.
func (d *daemon) lied(layer string, s layers.Sum, err error) {
	d.events.Emit(control.Event{Type: events.Fetch, Action: events.Lie, ID: string(s.Digest()),
		Attributes: events.Attrs("layer", layer, "image", d.imagesWith([]string{layer}), "error", err)})
	if d.images != nil {
		d.images.Lied(layer, s, err)
	}
}

func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// unkept tells that fetched bytes could not be kept.
func (d *daemon) unkept(err error) {
	e := control.Event{Type: events.Daemon, Action: events.Unkept, ID: strconv.Itoa(os.Getpid())}
	if isFull(err) {
		e.Action = events.Full
	}
	d.events.EmitOnce(burst, e, func() map[string]string { return events.Attrs("error", err) })
}

// imagesWith lists the images that have one of the layers. It looks into the
// database: for what is rare.
func (d *daemon) imagesWith(layerKeys []string) string {
	if d.images == nil { // while it is being opened
		return ""
	}
	var refs []string
	for ref, keys := range d.images.Layers() {
		if slices.ContainsFunc(keys, func(k string) bool { return slices.Contains(layerKeys, k) }) {
			refs = append(refs, ref)
		}
	}
	slices.Sort(refs)
	return strings.Join(refs, ",")
}
