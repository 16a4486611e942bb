package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/snapfs/snapfs/internal/control"
)

// indexVerbs are the commands of snapctl index.
var indexVerbs = map[string]func(context.Context, *Env, []string) error{
	"ls": listIndexes, "sign": signIndex, "verify": verifyIndex, "keygen": generateKey,
}

// index makes and publishes indexes.
func index(ctx context.Context, env *Env, args []string) error {
	if len(args) > 0 && indexVerbs[args[0]] != nil {
		return indexVerbs[args[0]](ctx, env, args[1:])
	}
	var a control.IndexArgs
	var quiet bool
	f := &flagSet{
		usage: "index [OPTIONS] IMAGE",
		about: "Make the index of an image: with it, a node that has never seen the image starts it\nwithout downloading it, and the image stays as it is. --push publishes it beside the\nimage, with the boot profile of the starts that were recorded here (see run --record).\n\n" +
			"  snapctl index ls IMAGE       list the indexes that are published for an image\n  snapctl index sign IMAGE     sign the newest, so that nodes with the public key believe it\n  snapctl index verify IMAGE   say by whose key they are signed\n  snapctl index keygen FILE    make a key: FILE is private, FILE.pub is for the nodes",
		example: "snapctl run --rm --record registry.example/app:1 app --version\nsnapctl index --push registry.example/app:1",
	}
	f.flag(&a.Push, "push", "publish it in the image's registry")
	f.text(&a.Platform, "platform", "OS/ARCH", "choose this platform")
	f.flag(&quiet, "q,quiet", "print the digest only")
	rest, err := f.parse(env, args, 1, 1)
	if err != nil {
		return err
	}
	a.Ref = rest[0]
	p := env.progress(quiet)
	var made control.IndexInfo
	_, err = env.request(ctx, control.OpIndex, a, &made, p.event)
	p.close()
	if err != nil {
		return err
	}
	return env.printIndex(made, quiet)
}

func (env *Env) printIndex(i control.IndexInfo, quiet bool) error {
	if env.JSON {
		return env.printJSON(i)
	}
	if !quiet {
		env.describeIndex(i)
	}
	id := i.Digest
	if id == "" {
		id = i.Root
	}
	_, err := fmt.Fprintln(env.Stdout, id)
	return err
}

func (env *Env) describeIndex(i control.IndexInfo) {
	what := "made, not published"
	if i.Digest != "" {
		what = "published"
	}
	fmt.Fprintf(env.Stderr, "%s: index of %d files %s: %s", i.Ref, i.Files, what, size(i.Size))
	if i.Blobs > 0 {
		fmt.Fprintf(env.Stderr, ", %.2f %% of the layers", 100*float64(i.Size)/float64(i.Blobs))
	}
	fmt.Fprintf(env.Stderr, "; a start needs %s of it\n", size(i.Prefix))
	if i.Profile.Starts > 0 {
		fmt.Fprintf(env.Stderr, "boot profile of %d starts: %s in %d chunks, %s as a bundle\n",
			i.Profile.Starts, size(i.Profile.Bytes), i.Profile.Chunks, size(i.Bundle))
	}
	for _, l := range i.Layers {
		if l.Why != "" {
			fmt.Fprintf(env.Stderr, "layer %s is not in it: %s\n", shortID(l.Digest), plainText(l.Why))
		}
	}
}

func listIndexes(ctx context.Context, env *Env, args []string) error {
	f := &flagSet{
		usage:   "index ls IMAGE",
		about:   "List the indexes that are published for an image, those that this node believes first.",
		example: "snapctl index ls registry.example/app:1",
	}
	list, err := env.indexesOf(ctx, f, new(control.IndexListArgs), args)
	if err != nil {
		return err
	}
	if env.JSON {
		return env.printJSON(list)
	}
	t := newTable("INDEX", "CREATED", "SIZE", "PREFIX", "BUNDLE", "SIGNED BY", "BELIEVED")
	for _, i := range list {
		believed := "yes"
		if !i.Believed {
			believed = i.Why
		}
		t.row(shortID(i.Digest), ago(i.Created, time.Now()), size(i.Size), size(i.Prefix), size(i.Bundle), i.Signer, believed)
	}
	_, err = env.Stdout.WriteString(t.String())
	return err
}

func (env *Env) indexesOf(ctx context.Context, f *flagSet, a *control.IndexListArgs, args []string) (list []control.IndexInfo, err error) {
	rest, err := f.parse(env, args, 1, 1)
	if err != nil {
		return nil, err
	}
	a.Ref = rest[0]
	for i := range a.Keys {
		if a.Keys[i], err = filepath.Abs(a.Keys[i]); err != nil {
			return nil, err
		}
	}
	err = env.call(ctx, control.OpIndexes, a, &list)
	return list, err
}

// errNoIndex says that nothing is published.
var errNoIndex = errors.New("no index is published for it: see snapctl index --push")

func signIndex(ctx context.Context, env *Env, args []string) error {
	var a control.IndexSignArgs
	f := &flagSet{
		usage:   "index sign --key FILE IMAGE",
		about:   "Sign the newest index that is published for an image, and publish it anew with the signature.",
		example: "snapctl index sign --key /etc/snapfs/index.key registry.example/app:1",
	}
	f.text(&a.Key, "key", "FILE", "private key, as index keygen makes it")
	rest, err := f.parse(env, args, 1, 1)
	if err != nil {
		return err
	}
	if a.Key == "" {
		return usageErrorf("index sign: --key FILE is needed; snapctl index keygen FILE makes one")
	}
	if a.Key, err = filepath.Abs(a.Key); err != nil {
		return err
	}
	a.Ref = rest[0]
	var out control.IndexInfo
	if err := env.call(ctx, control.OpIndexSign, a, &out); err != nil {
		return err
	}
	if env.JSON {
		return env.printJSON(out)
	}
	fmt.Fprintf(env.Stderr, "%s: signed by %s\n", out.Ref, out.Signer)
	_, err = fmt.Fprintln(env.Stdout, out.Digest)
	return err
}

func verifyIndex(ctx context.Context, env *Env, args []string) error {
	var a control.IndexListArgs
	f := &flagSet{
		usage:   "index verify [--key FILE]... IMAGE",
		about:   "Check the signatures of the indexes that are published for an image: with public keys, or\nby the daemon's configuration. It fails if none of them is signed by one of the keys.",
		example: "snapctl index verify --key index.key.pub registry.example/app:1",
	}
	f.list(&a.Keys, "key", "FILE", "public key (repeat for more)")
	list, err := env.indexesOf(ctx, f, &a, args)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return errNoIndex
	}
	good := 0
	for _, i := range list {
		if i.Signer == "" {
			fmt.Fprintf(env.Stderr, "index %s: %s\n", shortID(i.Digest), plainText(cmp.Or(i.Unsigned, i.Why)))
			continue
		}
		good++
		fmt.Fprintf(env.Stdout, "%s signed by %s\n", i.Digest, i.Signer)
	}
	if good == 0 {
		return fmt.Errorf("none of %d indexes is signed by a known key", len(list))
	}
	return nil
}

func generateKey(ctx context.Context, env *Env, args []string) error {
	f := &flagSet{
		usage:   "index keygen FILE",
		about:   "Make an ed25519 key pair: FILE is the private key, FILE.pub the public one.",
		example: "snapctl index keygen /etc/snapfs/index.key",
	}
	rest, err := f.parse(env, args, 1, 1)
	if err != nil {
		return err
	}
	path, err := filepath.Abs(rest[0])
	if err != nil {
		return err
	}
	var key control.Key
	if err := env.call(ctx, control.OpKeygen, control.KeygenArgs{Path: path}, &key); err != nil {
		return err
	}
	if env.JSON {
		return env.printJSON(key)
	}
	fmt.Fprintf(env.Stderr, "private key %s, public key %s\n", key.Private, key.Public)
	_, err = fmt.Fprintln(env.Stdout, key.ID)
	return err
}
