// Package userns reads what a container's user namespace is to be, and finds the
// users and groups of the host for it.
//
// Ranges come from one pool. Nothing but the containers' own records says which
// are taken, so there is no other book that could disagree with them after a crash.
package userns

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/control"
)

// The modes.
const (
	Host = "host" // the host's own namespace
	Auto = "auto" // one of its own, with a range of the pool
)

// A Request is what a container's user namespace is to be.
type Request struct {
	Auto     bool
	Of       string          // the container whose namespace it is; "": none's
	Size     uint32          // of the range; 0: as configured
	UID, GID []mounts.Extent // that are mapped besides, to the host's users and groups
}

// maxText bounds what is parsed, in bytes, and maxForced how many extents that may be.
const (
	maxText   = 4096
	maxForced = 32
)

// Parse reads a mode as podman writes it: host, container:NAME, auto, or
// auto:size=N,uidmapping=INSIDE:HOST:SIZE,gidmapping=INSIDE:HOST:SIZE. Mappings may
// be given several times. Errors name what cannot be.
func Parse(s string) (q Request, err error) {
	if len(s) > maxText {
		return q, fmt.Errorf("%d bytes: want at most %d", len(s), maxText)
	}
	mode, options, given := strings.Cut(s, ":")
	other, shared := control.OtherContainer(s)
	switch {
	case mode == Host && !given:
		return q, nil
	case shared:
		return Request{Of: other}, nil
	case mode != Auto:
		return q, fmt.Errorf("%q: want host, auto or container:NAME", s)
	case !given:
		return Request{Auto: true}, nil
	}
	q.Auto = true
	for option := range strings.SplitSeq(options, ",") {
		key, value, _ := strings.Cut(option, "=")
		switch key {
		case "size":
			n, perr := strconv.ParseUint(value, 10, 32)
			if perr != nil || n == 0 || n == math.MaxUint32 {
				return q, fmt.Errorf("size=%s: want the number of users and groups, such as size=65536", value)
			}
			q.Size = uint32(n)
		case "uidmapping":
			q.UID, err = addExtent(q.UID, value)
		case "gidmapping":
			q.GID, err = addExtent(q.GID, value)
		default:
			return q, fmt.Errorf("unknown option %q; want size=N, uidmapping=INSIDE:HOST:SIZE or gidmapping=INSIDE:HOST:SIZE", key)
		}
		if err != nil {
			return q, fmt.Errorf("%s: %w", key, err)
		}
	}
	return q, nil
}

// addExtent reads INSIDE:HOST:SIZE. The host's root is left out: who wants it wants --userns host.
func addExtent(list []mounts.Extent, text string) ([]mounts.Extent, error) {
	fields := strings.Split(text, ":")
	if len(fields) != 3 {
		return nil, fmt.Errorf("%q: want INSIDE:HOST:SIZE", text)
	}
	var n [3]uint32
	for i, f := range fields {
		v, err := strconv.ParseUint(f, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("%q: want INSIDE:HOST:SIZE, three numbers", text)
		}
		n[i] = uint32(v)
	}
	e := mounts.Extent{Container: n[0], Host: n[1], Size: n[2]}
	switch {
	case e.Size == 0 || e.Size > math.MaxUint32-e.Container || e.Size > math.MaxUint32-e.Host:
		return nil, fmt.Errorf("%q: it is empty, or reaches beyond the last number", text)
	case e.Host == 0:
		return nil, fmt.Errorf("%q: a container with the host's root wants --userns host", text)
	case len(list) == maxForced:
		return nil, fmt.Errorf("more than %d", maxForced)
	}
	return append(list, e), nil
}

// Map is the mappings of a namespace that has the range r: numbers inside from 0 up
// to r.Size are the range's in their order, but for those that q maps to others.
func (q Request) Map(r control.IDRange) (mounts.IDMap, error) {
	m := mounts.IDMap{UID: fill(q.UID, r.UID, r.Size), GID: fill(q.GID, r.GID, r.Size)}
	return m, m.Check()
}

func fill(forced []mounts.Extent, host, size uint32) (all []mounts.Extent) {
	forced = slices.Clone(forced)
	slices.SortFunc(forced, func(a, b mounts.Extent) int { return cmp.Compare(a.Container, b.Container) })
	at := uint64(0)
	until := func(end uint64) {
		if end = min(end, uint64(size)); end > at {
			all = append(all, mounts.Extent{Container: uint32(at), Host: host + uint32(at), Size: uint32(end - at)})
		}
	}
	for _, e := range forced {
		until(uint64(e.Container))
		at = max(at, uint64(e.Container)+uint64(e.Size))
		all = append(all, e)
	}
	until(uint64(size))
	return all
}
