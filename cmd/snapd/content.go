package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/snapshotter/blobs"
	"github.com/snapfs/snapfs/snapshotter/entries"
)

// contentDir is the directory of ROOT that has one for the content of each containerd.
const contentDir = "content"

// openContent opens the content store of this containerd, and serves it. Nobody
// asks it for anything unless containerd is configured to.
func (c *containerd) openContent() (err error) {
	dir := cmp.Or(c.Content, filepath.Join(c.d.c.Root, contentDir, c.Name))
	c.content, err = blobs.Open(context.Background(), blobs.Options{Root: dir, Book: c.d.images, Blobs: c.d.registry, Log: c.log, Stats: &c.d.contents})
	if err != nil {
		return fmt.Errorf("content: %w", err)
	}
	c.entries = entries.New(context.Background(), entries.Options{Address: c.Address, Socket: c.Socket, Info: c.content.Info, Log: c.log})
	contentapi.RegisterContentServer(c.server, blobs.NewServer(c.content, c.entries.Used))
	return nil
}

func (c *containerd) closeContent() error {
	if c.content == nil {
		return nil
	}
	c.entries.Close()
	return c.content.Close()
}

// held makes a layer exist in the namespace that has asked for it.
func (c *containerd) held(ctx context.Context, blob digest.Digest) {
	if ns, ok := namespaces.Namespace(ctx); ok {
		c.entries.Prepared(ns, blob)
	}
}

// validateContent says whether content stores may be where they are configured
// to be: what one does not know it deletes, so each needs a directory of its own.
func (c *Config) validateContent() error {
	dirs := map[string]bool{}
	root, run := filepath.Clean(c.Root)+"/", filepath.Clean(c.Run)+"/"
	for _, e := range c.containerds() {
		if e.Content == "" {
			continue
		}
		in := e.Content + "/"
		switch {
		case !filepath.IsAbs(e.Content) || filepath.Clean(e.Content) != e.Content || e.Content == "/":
			return fmt.Errorf("containerd.content = %q: want a clean absolute path", e.Content)
		case strings.HasPrefix(in, root), strings.HasPrefix(root, in), strings.HasPrefix(in, run), strings.HasPrefix(run, in):
			return fmt.Errorf("containerd.content = %q: neither root nor run may hold it, nor it them; without it the content is in %s", e.Content, filepath.Join(c.Root, contentDir))
		}
		for dir := range dirs {
			if strings.HasPrefix(in, dir) || strings.HasPrefix(dir, in) {
				return errors.New("containerd.content: two tables have the same directory, or one within the other's: each deletes what it does not know")
			}
		}
		dirs[in] = true
	}
	return nil
}
