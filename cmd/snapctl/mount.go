package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/control"
)

func mount(ctx context.Context, env *Env, args []string) error {
	a := control.MountArgs{Policy: "missing"}
	var quiet bool
	f := &flagSet{
		usage:   "mount [OPTIONS] [IMAGE DIR]",
		about:   "Mount an image at DIR, in the mount namespace of the caller: read-only, or with the\nchanges in a directory of one's own. Without arguments, list such mounts.",
		example: "snapctl mount docker.io/library/debian:stable /mnt\nsnapctl mount --upper /srv/up --work /srv/work docker.io/library/debian:stable /mnt",
	}
	f.text(&a.Platform, "platform", "OS/ARCH", "choose this platform")
	f.add("pull", "POLICY", "ask the registry: always, missing (default) or never", func(s string) error { a.Policy = s; return nil })
	f.flag(&quiet, "q,quiet", "do not show how the image comes in")
	f.text(&a.Upper, "upper", "DIR", "keep changes in DIR, which has to be on the same file system as --work")
	f.text(&a.Work, "work", "DIR", "an empty directory that overlayfs works in")
	rest, err := f.parse(env, args, 0, 2)
	if err != nil {
		return err
	}
	switch len(rest) {
	case 0:
		return env.listMounts(ctx)
	case 1:
		return usageErrorf("mount: where to? usage: snapctl %s", f.usage)
	}
	if (a.Upper == "") != (a.Work == "") {
		return usageErrorf("mount: --upper and --work belong together")
	}
	a.Ref = rest[0]
	if a.Target, err = filepath.EvalSymlinks(rest[1]); err != nil {
		return err
	}
	for _, p := range []*string{&a.Target, &a.Upper, &a.Work} {
		if *p == "" {
			continue
		}
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
		if fi, err := os.Stat(*p); err != nil || !fi.IsDir() {
			return errors.Join(err, notDir(*p, err))
		}
	}
	return env.mountAt(ctx, a, quiet)
}

func notDir(path string, err error) error {
	if err != nil {
		return nil
	}
	return fmt.Errorf("%s: not a directory", path)
}

// mountAt mounts here, so that the mount is made in the caller's namespace, and
// has the daemon remember that the image is in use.
func (env *Env) mountAt(ctx context.Context, a control.MountArgs, quiet bool) error {
	p := env.progress(quiet)
	var m control.Mount
	_, err := env.request(ctx, control.OpMount, a, &m, p.event)
	p.close()
	if err != nil {
		return err
	}
	m.Target = a.Target
	if err := env.call(ctx, control.OpMounted, m, nil); err != nil { // before it is true: forgetting one would let its image go
		return err
	}
	f, err := mounts.Overlay(mounts.Rootfs{
		Lower: m.Rootfs.Lower, Data: m.Rootfs.Data, Upper: a.Upper, Work: a.Work,
		ReadOnly: m.Rootfs.ReadOnly, Volatile: m.Rootfs.Volatile,
	})
	if err == nil {
		defer f.Close()
		err = mounts.Attach(f, a.Target)
	}
	if err != nil {
		return errors.Join(err, env.call(context.WithoutCancel(ctx), control.OpUmount, m, nil))
	}
	if env.JSON {
		return env.printJSON(m)
	}
	return nil
}

func (env *Env) listMounts(ctx context.Context) error {
	var list []control.Mount
	if err := env.call(ctx, control.OpMounts, nil, &list); err != nil {
		return err
	}
	t := newTable("IMAGE", "TARGET", "MODE")
	for _, m := range list {
		mode := "read-only"
		if m.Rootfs.Upper != "" {
			mode = "writable"
		}
		t.row(m.Ref, m.Target, mode)
	}
	return env.table(t, list)
}

func umount(ctx context.Context, env *Env, args []string) error {
	var lazy bool
	f := &flagSet{
		usage:   "umount [OPTIONS] DIR...",
		about:   "Unmount images that snapctl mount has mounted.",
		example: "snapctl umount /mnt",
	}
	f.flag(&lazy, "l,lazy", "also if something there is in use: it stays until it is not")
	rest, err := f.parse(env, args, 1, -1)
	if err != nil {
		return err
	}
	return env.each(rest, func(name string) error {
		dir, err := filepath.Abs(name)
		if err != nil {
			return err
		}
		if real, err := filepath.EvalSymlinks(filepath.Dir(dir)); err == nil {
			dir = filepath.Join(real, filepath.Base(dir))
		}
		if err := env.isOurs(ctx, dir); err != nil {
			return err
		}
		if err := mounts.Unmount(dir, lazy); err != nil {
			return err
		}
		return env.call(ctx, control.OpUmount, control.Mount{Target: dir}, nil)
	})
}

// isOurs keeps umount from what somebody else has mounted.
func (env *Env) isOurs(ctx context.Context, dir string) error {
	var list []control.Mount
	if err := env.call(ctx, control.OpMounts, nil, &list); err != nil {
		return err
	}
	for _, m := range list {
		if m.Target == dir {
			return nil
		}
	}
	return fmt.Errorf("%s: no image is mounted there", dir)
}
