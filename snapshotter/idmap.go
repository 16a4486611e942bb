package snapshotter

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// maxExtents is how many mappings the kernel takes for a user namespace
// (UID_GID_MAP_MAX_EXTENTS, include/linux/user_namespace.h).
const maxExtents = 340

// idMap reads the mapping of a snapshot's labels, and who is root in it.
// Without labels shifts is false.
func idMap(labels map[string]string) (m IDMap, uid, gid int, shifts bool, err error) {
	m = IDMap{UID: labels[snapshots.LabelSnapshotUIDMapping], GID: labels[snapshots.LabelSnapshotGIDMapping]}
	if m == (IDMap{}) {
		return m, 0, 0, false, nil
	}
	if uid, err = rootOf(m.UID); err != nil {
		return m, 0, 0, false, fmt.Errorf("label %s: %w", snapshots.LabelSnapshotUIDMapping, err)
	}
	if gid, err = rootOf(m.GID); err != nil {
		return m, 0, 0, false, fmt.Errorf("label %s: %w", snapshots.LabelSnapshotGIDMapping, err)
	}
	return m, uid, gid, true, nil
}

// rootOf is what 0 is on the host. An empty list maps everything to itself.
func rootOf(list string) (int, error) {
	if list == "" {
		return 0, nil
	}
	root := -1
	extents := strings.Split(list, ",")
	if len(extents) > maxExtents {
		return 0, fmt.Errorf("%d mappings, at most %d: %w", len(extents), maxExtents, errdefs.ErrInvalidArgument)
	}
	for _, e := range extents {
		inside, host, err := extent(e)
		if err != nil {
			return 0, err
		}
		if inside == 0 {
			root = host
		}
	}
	if root < 0 {
		return 0, fmt.Errorf("%q does not map 0: %w", list, errdefs.ErrInvalidArgument)
	}
	return root, nil
}

// extent reads CONTAINER:HOST:SIZE.
func extent(s string) (inside, host int, err error) {
	parts := strings.Split(s, ":")
	var n [3]uint64
	if len(parts) == len(n) {
		for i, p := range parts {
			if n[i], err = strconv.ParseUint(p, 10, 32); err != nil {
				break
			}
		}
	}
	// (uid_t)-1 is nobody, and no range may contain it.
	if len(parts) != len(n) || err != nil || n[2] == 0 || n[0]+n[2] > math.MaxUint32 || n[1]+n[2] > math.MaxUint32 {
		return 0, 0, fmt.Errorf("mapping %q is not CONTAINER:HOST:SIZE: %w", s, errdefs.ErrInvalidArgument)
	}
	return int(n[0]), int(n[1]), nil
}
