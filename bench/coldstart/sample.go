package main

import (
	"context"
	"os"
	"path/filepath"
	"runtime"

	"github.com/snapfs/snapfs/bench/sample"
)

// sampleTasks is the table of the image there is without a corpus.
const sampleTasks = "image\tready\ttask\n" +
	"golang\tline:go version\t[\"go\",\"version\"]\n"

// makeSample makes a corpus of this machine's Go toolchain below cache, and
// returns its directory.
func makeSample(ctx context.Context, cache string) (string, error) {
	dir := filepath.Join(cache, "sample-"+runtime.Version())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if _, err := sample.Make(ctx, filepath.Join(dir, "oci"), "golang", false); err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "images.tsv"), []byte(sampleTasks), 0o644)
}
