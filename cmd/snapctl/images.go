package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/snapfs/snapfs/internal/control"
)

func pull(ctx context.Context, env *Env, args []string) error {
	a := control.PullArgs{Policy: "always"}
	var quiet bool
	f := &flagSet{
		usage:   "pull [OPTIONS] IMAGE...",
		about:   "Ask the registry for images and make them known. An image whose layers have a table\nof contents is ready as soon as that is here, and the rest comes in the background;\nothers are downloaded.",
		example: "snapctl pull --wait docker.io/library/python:3.13-slim",
	}
	f.text(&a.Platform, "platform", "OS/ARCH", "choose this platform")
	f.flag(&quiet, "q,quiet", "print the digest only")
	f.flag(&a.Wait, "wait", "return when every byte is local")
	rest, err := f.parse(env, args, 1, -1)
	if err != nil {
		return err
	}
	return env.each(rest, func(ref string) error {
		a.Ref = ref
		p := env.progress(quiet)
		var image control.Image
		_, err := env.request(ctx, control.OpPull, a, &image, p.event)
		p.close()
		if err != nil {
			return err
		}
		if env.JSON {
			return env.printJSON(image)
		}
		if !quiet {
			fmt.Fprintf(env.Stderr, "%s: %s\n", image.Ref, pulled(image))
		}
		_, err = fmt.Fprintln(env.Stdout, image.Digest)
		return err
	})
}

// pulled says in what state an image is.
func pulled(i control.Image) string {
	switch {
	case i.Complete || i.Local >= i.Size:
		return fmt.Sprintf("all of %s is local", size(i.Size))
	case i.Lazy:
		return fmt.Sprintf("ready; %s of %s is local", size(i.Local), size(i.Size))
	}
	return fmt.Sprintf("%s of %s is local", size(i.Local), size(i.Size))
}

func images(ctx context.Context, env *Env, args []string) error {
	var quiet, long bool
	f := &flagSet{
		usage:   "images [OPTIONS]",
		about:   "List images. LOCAL is how much of one is on this machine.",
		example: "snapctl images --json",
	}
	f.flag(&quiet, "q,quiet", "print IDs only")
	f.flag(&long, "no-trunc", "do not shorten IDs")
	if _, err := f.parse(env, args, 0, 0); err != nil {
		return err
	}
	var list []control.Image
	if err := env.call(ctx, control.OpImages, nil, &list); err != nil {
		return err
	}
	id := shortID
	if long {
		id = func(s string) string { return s }
	}
	if quiet && !env.JSON {
		for _, i := range list {
			fmt.Fprintln(env.Stdout, id(i.ID))
		}
		return nil
	}
	return env.table(imageTable(list, id, time.Now()), list)
}

func imageTable(list []control.Image, id func(string) string, now time.Time) *table {
	t := newTable("REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE", "LOCAL")
	for _, i := range list {
		repo, tag := repository(i.Ref)
		t.row(repo, tag, id(i.ID), ago(i.Created, now), size(i.Size), share(i))
	}
	return t
}

// share is how much of an image is local.
func share(i control.Image) string {
	if i.Complete || i.Local >= i.Size {
		return "all"
	}
	return fmt.Sprintf("%d%%", i.Local*100/i.Size)
}

func rmi(ctx context.Context, env *Env, args []string) error {
	var a control.RemoveImagesArgs
	f := &flagSet{
		usage:   "rmi [OPTIONS] IMAGE...",
		about:   "Remove names of images; what no name leads to any more is deleted.",
		example: "snapctl rmi docker.io/library/python:3.13-slim",
	}
	f.flag(&a.Force, "f,force", "also if stopped containers use it")
	rest, err := f.parse(env, args, 1, -1)
	if err != nil {
		return err
	}
	return env.each(rest, func(ref string) error {
		a.Refs = []string{ref}
		var removed []control.Removed
		if err := env.call(ctx, control.OpRmi, a, &removed); err != nil {
			return err
		}
		if env.JSON {
			return env.jsonLines(removed)
		}
		for _, r := range removed {
			if r.Deleted {
				fmt.Fprintf(env.Stdout, "Deleted: %s\n", r.Ref)
			} else {
				fmt.Fprintf(env.Stdout, "Untagged: %s\n", r.Ref)
			}
		}
		return nil
	})
}

func tag(ctx context.Context, env *Env, args []string) error {
	f := &flagSet{
		usage:   "tag IMAGE NAME",
		about:   "Give an image a further name.",
		example: "snapctl tag python:3.13-slim registry.example/py:1",
	}
	rest, err := f.parse(env, args, 2, 2)
	if err != nil {
		return err
	}
	return env.call(ctx, control.OpTag, control.TagArgs{Src: rest[0], Dst: rest[1]}, nil)
}

func push(ctx context.Context, env *Env, args []string) error {
	var quiet bool
	f := &flagSet{
		usage:   "push [OPTIONS] IMAGE [DESTINATION]",
		about:   "Send an image to a registry, under its own name or another one.",
		example: "snapctl push python:3.13-slim registry.example/py:1",
	}
	f.flag(&quiet, "q,quiet", "print the digest only")
	rest, err := f.parse(env, args, 1, 2)
	if err != nil {
		return err
	}
	a := control.PushArgs{Src: rest[0]}
	if len(rest) == 2 {
		a.Dst = rest[1]
	}
	return env.transfer(ctx, control.OpPush, a, quiet)
}

func convert(ctx context.Context, env *Env, args []string) error {
	a := control.ConvertArgs{Format: "estargz"}
	var quiet bool
	f := &flagSet{
		usage:   "convert [OPTIONS] IMAGE DESTINATION",
		about:   "Make a copy of an image that can start lazily anywhere. DESTINATION is a name in a\nregistry, or oci:DIR[:TAG].",
		example: "snapctl convert --format zstd:chunked python:3.13-slim registry.example/py:lazy",
	}
	f.add("format", "FORMAT", "estargz (default) or zstd:chunked", func(s string) error {
		a.Format = s
		if s != "estargz" && s != "zstd:chunked" {
			return fmt.Errorf("%q: want estargz or zstd:chunked", s)
		}
		return nil
	})
	f.number(&a.Level, "level", "N", "compression level (default that of the format)")
	f.text(&a.Platform, "platform", "OS/ARCH", "choose this platform")
	f.flag(&quiet, "q,quiet", "print the digest only")
	rest, err := f.parse(env, args, 2, 2)
	if err != nil {
		return err
	}
	a.Src, a.Dst = rest[0], rest[1]
	return env.transfer(ctx, control.OpConvert, a, quiet)
}

func (env *Env) transfer(ctx context.Context, op string, args any, quiet bool) error {
	p := env.progress(quiet)
	var out control.Pushed
	_, err := env.request(ctx, op, args, &out, p.event)
	p.close()
	if err != nil {
		return err
	}
	if env.JSON {
		return env.printJSON(out)
	}
	if !quiet {
		fmt.Fprintf(env.Stderr, "%s: %s\n", out.Ref, size(out.Size))
	}
	_, err = fmt.Fprintln(env.Stdout, out.Digest)
	return err
}

func inspect(ctx context.Context, env *Env, args []string) error {
	kind := ""
	f := &flagSet{
		usage:   "inspect [OPTIONS] NAME...",
		about:   "Show all about containers and images, as a JSON array.",
		example: "snapctl inspect web",
	}
	f.add("type", "KIND", "look for a container or an image only", func(s string) error {
		if kind = s; s != "container" && s != "image" {
			return fmt.Errorf("%q: want container or image", s)
		}
		return nil
	})
	rest, err := f.parse(env, args, 1, -1)
	if err != nil {
		return err
	}
	found := []json.RawMessage{}
	failed := env.each(rest, func(name string) error {
		v, err := env.inspectOne(ctx, kind, name)
		if err == nil {
			found = append(found, v)
		}
		return err
	})
	if len(found) > 0 {
		if err := env.printIndented(found); err != nil {
			return err
		}
	}
	return failed
}

func (env *Env) inspectOne(ctx context.Context, kind, name string) (json.RawMessage, error) {
	var v json.RawMessage
	if kind != "image" {
		err := env.call(ctx, control.OpCInsp, control.ContainerArgs{ID: name}, &v)
		if e, ok := errors.AsType[*control.Error](err); err == nil || kind != "" || !ok || e.Code != control.CodeNotFound {
			return v, err
		}
	}
	err := env.call(ctx, control.OpInspect, control.RefArgs{Ref: name}, &v)
	if e, ok := errors.AsType[*control.Error](err); kind == "" && ok && (e.Code == control.CodeNotFound || e.Code == control.CodeInvalid) {
		err = fmt.Errorf("no such container or image: %s", name)
	}
	return v, err
}
