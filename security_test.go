package snapfs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestSecurityTable: the tests that SECURITY.md names exist where it says.
func TestSecurityTable(t *testing.T) {
	text, err := os.ReadFile("SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`([a-z/]+)` (Test\\w+(?:, Test\\w+)*)")
	n := 0
	for _, m := range named.FindAllStringSubmatch(string(text), -1) {
		files, err := filepath.Glob(filepath.Join(m[1], "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		var all strings.Builder
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			all.Write(b)
		}
		for name := range strings.SplitSeq(m[2], ", ") {
			n++
			if !strings.Contains(all.String(), "\nfunc "+name+"(t *testing.T)") {
				t.Errorf("SECURITY.md: %s has no %s", m[1], name)
			}
		}
	}
	if n < 40 {
		t.Errorf("SECURITY.md names %d tests", n)
	}
}
