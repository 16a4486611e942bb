package systemd

import (
	"errors"
	"fmt"
	"strings"
)

// Path is where a slice's group lies, below the mount points of the hierarchies:
// "/" for -.slice, "/a.slice/a-b.slice" for a-b.slice (systemd.slice(5)).
func Path(slice string) (string, error) {
	name, ok := strings.CutSuffix(slice, ".slice")
	if !ok || strings.Contains(name, "/") {
		return "", fmt.Errorf("%q is no name of a slice", slice)
	}
	if name == "-" {
		return "/", nil
	}
	if err := CheckUnit(slice); err != nil {
		return "", err
	}
	path, prefix := "", ""
	for part := range strings.SplitSeq(name, "-") {
		if part == "" {
			return "", fmt.Errorf("%q is no name of a slice", slice)
		}
		path += "/" + prefix + part + ".slice"
		prefix += part + "-"
	}
	return path, nil
}

// CheckUnit tells whether a unit may have a name (systemd.unit(5)).
func CheckUnit(name string) error {
	if len(name) > 255 {
		return errors.New("the name of a unit has at most 255 bytes")
	}
	for _, c := range []byte(name) {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && !strings.ContainsRune(`:-_.\@`, rune(c)) {
			return fmt.Errorf("%q is no name of a unit: it has %q", name, c)
		}
	}
	return nil
}
