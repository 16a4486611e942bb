package node

import (
	"fmt"
	"regexp"
	"strconv"
)

// A Version of containerd.
type Version struct{ Major, Minor, Patch int }

var versionWord = regexp.MustCompile(`(?:^|[\s/v])v?(\d{1,4})\.(\d{1,4})\.(\d{1,4})(?:[-+~\s]|$)`)

// ParseVersion reads what "containerd --version" prints, or a version alone.
func ParseVersion(s string) (Version, error) {
	m := versionWord.FindStringSubmatch(s)
	if m == nil {
		return Version{}, fmt.Errorf("no version of containerd in %q", s)
	}
	var v Version
	for i, n := range []*int{&v.Major, &v.Minor, &v.Patch} {
		*n, _ = strconv.Atoi(m[i+1]) // at most four digits
	}
	return v, nil
}

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch) }

// atLeast compares without the patch level.
func (v Version) atLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

// configVersion is the newest format of configuration files that v reads
// (version/version.go; before 2.0 the default in cmd/containerd/command/config.go).
func (v Version) configVersion() int {
	switch {
	case v.atLeast(2, 3):
		return 4
	case v.atLeast(2, 0):
		return 3
	}
	return 2
}

// staged tells whether v takes a read-only mount for a layer that is there
// already (core/unpack/unpacker.go, isStaged). With the capability "rebase" and
// without that, layers come without parents and cannot be lazy.
func (v Version) staged() bool { return v.atLeast(2, 4) }

// transfers tells whether CRI pulls by the transfer service, which takes the
// permission to annotate snapshots from the proxy plugin's exports
// (core/transfer/local/pull.go). Before that CRI's own setting counts.
func (v Version) transfers() bool { return v.atLeast(2, 1) }

// Oldest is the first that works: proxy plugins have capabilities and exports.
var Oldest = Version{1, 7, 0}
