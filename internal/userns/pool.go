package userns

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/control"
)

// DefaultSize is how many users and groups a container gets: all that fit into 16
// bits, so that the last of them, nobody, is among them.
const DefaultSize = 65536

// A Pool is what ranges come from.
type Pool struct {
	control.IDRange
	From string // what says so, for errors
}

// Default is the pool of a machine where nothing is configured. It is what lies
// between the containers of systemd-nspawn (to 0x6FFFFFFF) and systemd's foreign
// users (from 0x7FFE0000), far above what useradd(8) and the kubelet give out
// (systemd, docs/UIDS-GIDS.md): room for 4,094 containers.
var Default = Pool{control.IDRange{UID: 0x70000000, GID: 0x70000000, Size: 0x0FFE0000}, "the default"}

// least is the first user that a pool may have: below are real ones, also those of
// old file systems on the network.
const least = 65536

// Check says what is wrong with a pool.
func (p Pool) Check() error {
	switch {
	case p.UID < least || p.GID < least:
		return fmt.Errorf("it begins at %d: want %d or more, below are users of the host", min(p.UID, p.GID), least)
	case p.Size == 0 || p.Size > math.MaxUint32-max(p.UID, p.GID):
		return fmt.Errorf("%d users from %d on: it is empty, or reaches beyond the last number", p.Size, max(p.UID, p.GID))
	}
	return nil
}

// Touches returns the first of some extents that has users or groups of the pool: they
// are, or will be, another container's. first is that of the pool's users, or groups.
func (p Pool) Touches(first uint32, list []mounts.Extent) (mounts.Extent, bool) {
	i := slices.IndexFunc(list, func(e mounts.Extent) bool { return overlap(e.Host, e.Size, first, p.Size) })
	if i < 0 {
		return mounts.Extent{}, false
	}
	return list[i], true
}

func overlap(a, n, b, m uint32) bool {
	return uint64(a) < uint64(b)+uint64(m) && uint64(b) < uint64(a)+uint64(n)
}

// Take finds a range of size that overlaps none in use, by users or by groups; false
// if there is none. It looks from the offset from on first, and then from the start:
// whoever gives it the end of the last range has ranges used again as late as can be.
func (p Pool) Take(use []control.IDRange, size, from uint32) (control.IDRange, bool) {
	if size == 0 || size > p.Size {
		return control.IDRange{}, false
	}
	blocked := p.blocked(use)
	if from < p.Size {
		if at, ok := p.gap(blocked, uint64(from), size); ok {
			return p.at(at, size), true
		}
	}
	at, ok := p.gap(blocked, 0, size)
	if !ok {
		return control.IDRange{}, false
	}
	return p.at(at, size), true
}

func (p Pool) at(off uint64, size uint32) control.IDRange {
	return control.IDRange{UID: p.UID + uint32(off), GID: p.GID + uint32(off), Size: size}
}

// End is the offset in the pool that follows a range.
func (p Pool) End(r control.IDRange) uint32 {
	if r.UID < p.UID {
		return 0
	}
	return r.UID - p.UID + r.Size
}

// span is a part of the pool, by offsets.
type span struct{ from, to uint64 }

// blocked are the parts of the pool that are in use, in order. Users and groups go
// together: what one of them lacks, the other cannot have.
func (p Pool) blocked(use []control.IDRange) (list []span) {
	for _, r := range use {
		for _, x := range [2]struct{ first, pool uint32 }{{r.UID, p.UID}, {r.GID, p.GID}} {
			if overlap(x.first, r.Size, x.pool, p.Size) {
				list = append(list, span{uint64(max(x.first, x.pool)) - uint64(x.pool), uint64(x.first) + uint64(r.Size) - uint64(x.pool)})
			}
		}
	}
	slices.SortFunc(list, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	return list
}

// gap finds the first place from an offset on.
func (p Pool) gap(blocked []span, at uint64, size uint32) (uint64, bool) {
	for _, b := range blocked {
		if b.to <= at {
			continue
		}
		if b.from >= at+uint64(size) {
			break
		}
		at = b.to
	}
	return at, at+uint64(size) <= uint64(p.Size)
}

// Owner is the name in /etc/subuid and /etc/subgid whose entry is the pool.
const Owner = "snapfs"

// Subordinate is the pool that /etc/subuid and /etc/subgid have for us (subuid(5)):
// the first entry of Owner in each. False if one is missing. Of podman's, containers,
// nothing is taken: it gives out ranges of it by a book of its own.
func Subordinate(subuid, subgid []byte) (Pool, bool) {
	u, n, ok := entry(subuid)
	g, m, both := entry(subgid)
	return Pool{control.IDRange{UID: u, GID: g, Size: min(n, m)}, "the entry " + Owner + " of /etc/subuid and /etc/subgid"}, ok && both
}

// Claimed returns the first of others' entries in a file such as /etc/subuid that has
// some of the numbers from first on: those are used by them, too.
func Claimed(file []byte, first, size uint32) (name string, ok bool) {
	for line := range bytes.Lines(file) {
		name, a, n, ok := parseEntry(line)
		if ok && name != Owner && overlap(a, n, first, size) {
			return name, true
		}
	}
	return "", false
}

func entry(file []byte) (first, size uint32, ok bool) {
	for line := range bytes.Lines(file) {
		if name, a, n, ok := parseEntry(line); ok && name == Owner {
			return a, n, true
		}
	}
	return 0, 0, false
}

// parseEntry reads NAME:FIRST:SIZE.
func parseEntry(line []byte) (name string, first, size uint32, ok bool) {
	f := strings.Split(strings.TrimSpace(string(line)), ":")
	if len(f) != 3 {
		return "", 0, 0, false
	}
	a, err1 := strconv.ParseUint(f[1], 10, 32)
	n, err2 := strconv.ParseUint(f[2], 10, 32)
	return f[0], uint32(a), uint32(n), err1 == nil && err2 == nil
}
