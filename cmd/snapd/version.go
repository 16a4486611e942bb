package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/snapfs/snapfs/internal/images"
)

// stateVersion is the version of everything below ROOT, as its file "version"
// has it. It grows when an older daemon could harm what a newer one wrote.
const stateVersion = 1

// checkVersion refuses a root of a later version before anything there is
// touched, and marks a new one.
func checkVersion(root string) error {
	path := filepath.Join(root, "version")
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	text := strings.TrimSpace(string(b))
	if text == "" { // new, or the machine went down just then
		return os.WriteFile(path, fmt.Appendf(nil, "%d\n", stateVersion), 0o600)
	}
	have, err := strconv.Atoi(text)
	switch {
	case err != nil || have < 1:
		return fmt.Errorf("%s: %.40q is no version", path, text)
	case have > stateVersion:
		return fmt.Errorf("%s: %w: format %d, this version knows %d", path, images.ErrNewer, have, stateVersion)
	}
	return nil
}
