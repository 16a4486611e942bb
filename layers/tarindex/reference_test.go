package tarindex

import (
	"archive/tar"
	"bytes"
	"io"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// A member is what archive/tar says of one.
type member struct {
	*tar.Header
	data []byte
}

// reference reads an archive with archive/tar, data and all.
func reference(p []byte) (list []member, err error) {
	r := tar.NewReader(bytes.NewReader(p))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return list, nil
		}
		if err != nil {
			return list, err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if h.Size > 1<<20 {
			return list, tar.ErrFieldTooLong // a fuzzer's hole: not to be filled
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return list, err
		}
		list = append(list, member{h, data})
	}
}

var errEnd = io.EOF

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

func goroot(t testing.TB) string {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Skip("no go command: ", err)
	}
	return strings.TrimSpace(string(out))
}
