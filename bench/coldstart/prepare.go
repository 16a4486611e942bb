package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/snapfs/snapfs/bench/containerd"
)

// repo is the repository of a form of an image; the tag is latest.
func repo(form, image string) string { return form + "/" + image }

func ref(host, form, image string) string { return host + "/" + repo(form, image) + ":latest" }

// prepare makes the forms of the images that the systems want. What cannot be
// made is in b.unfit, with the reason.
func (b *bench) prepare(ctx context.Context) error {
	b.unfit = make(map[[2]string]error)
	for _, t := range b.tasks {
		digest, _, err := b.registry.Load(repo(formPlain, t.Image), "latest")
		if err != nil {
			return err
		}
		for _, form := range b.forms() {
			err := b.makeForm(ctx, form, t, digest.Encoded()[:12])
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err == nil {
				_, _, err = b.registry.Load(repo(form, t.Image), "latest")
			}
			if err != nil {
				b.unfit[[2]string{form, t.Image}] = err
				b.say("no form %s of %s: %v", form, t.Image, err)
			}
		}
	}
	return nil
}

// forms returns those that the systems want and that are not there from the start.
func (b *bench) forms() (list []string) {
	seen := map[string]bool{formPlain: true}
	for _, s := range b.systems {
		if !seen[s.form] && s.missing(context.Background()) == nil {
			seen[s.form] = true
			list = append(list, s.form)
		}
	}
	return list
}

// makeForm makes one form of an image. Those that others' programs make are
// kept in the cache; ours are made every time, by what is measured.
func (b *bench) makeForm(ctx context.Context, form string, t task, digest string) error {
	if publications[form] != nil {
		if err := b.registry.Copy(repo(formPlain, t.Image), "latest", repo(form, t.Image), "latest"); err != nil {
			return err
		}
		b.say("publishing: %s of %s", form, t.Image)
		return b.onNode(ctx, snapd(trustAny), func(ctx context.Context, c client) error {
			return c.(*snapctlClient).publish(ctx, form, ref(b.host, form, t.Image), t)
		})
	}
	kept := form + "." + t.Image + "." + digest
	err := b.registry.AddLayout(b.conf.cache, func(tag string) (string, string) {
		if tag != kept {
			return "", ""
		}
		return repo(form, t.Image), "latest"
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if b.registry.Has(repo(form, t.Image), "latest") {
		return nil
	}
	b.say("converting: %s of %s", form, t.Image)
	up := func(ctx context.Context, _ *bench, n *node, _ string) (client, error) {
		return startContainerd(ctx, n, "overlayfs", containerd.Settings["overlayfs"])
	}
	err = b.onNode(ctx, up, func(ctx context.Context, c client) error {
		return convert(ctx, c.(*ctrClient), form, ref(b.host, formPlain, t.Image), ref(b.host, form, t.Image), t)
	})
	if err != nil {
		return err
	}
	return b.registry.Save(b.conf.cache, repo(form, t.Image), "latest", kept)
}

// onNode does something on a node that has the registry at hand, without the link.
func (b *bench) onNode(ctx context.Context, up func(context.Context, *bench, *node, string) (client, error), do func(context.Context, client) error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, b.conf.timeout)
	defer cancel()
	n, err := newNode(b.conf.work, b.conf.cgroup)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	c, err := up(ctx, b, n, b.host)
	if err == nil {
		err = do(ctx, c)
	}
	if err != nil {
		err = fmt.Errorf("%w; %s", err, n.logs())
	}
	return err
}

// conversions are commands that make a form: to {to}, from {from}, which has been pulled.
// The level of compression is that of gzip's default, as most images have, and
// not that of the tool, 9.
var conversions = map[string][]string{
	formEsgz:    {"ctr-remote", "-a", "{socket}", "images", "convert", "--oci", "--estargz", "--estargz-compression-level", "6", "{from}", "{to}"},
	formEsgzOpt: {"ctr-remote", "-a", "{socket}", "images", "optimize", "--oci", "--estargz-compression-level", "6", "{wait}", "{args}", "{from}", "{to}"},
	formSoci:    {"soci", "--address", "{socket}", "--root", "{work}/soci", "convert", "{from}", "{to}"},
}

func convert(ctx context.Context, c *ctrClient, form, from, to string, t task) error {
	if _, err := c.n.output(ctx, c.ctr("images", "pull", "--plain-http", from)...); err != nil {
		return err
	}
	words, err := conversion(form, t)
	if err != nil {
		return err
	}
	fill := strings.NewReplacer("{socket}", c.socket, "{work}", c.n.dir, "{from}", from, "{to}", to)
	for i, w := range words {
		words[i] = fill.Replace(w)
	}
	if _, err := c.n.output(ctx, words...); err != nil {
		return err
	}
	_, err = c.n.output(ctx, c.ctr("images", "push", "--plain-http", to)...)
	return err
}

// conversion is the command for a task.
func conversion(form string, t task) (argv []string, err error) {
	for _, w := range conversions[form] {
		switch {
		case w == "{wait}" && t.Ready.Kind == "line":
			argv = append(argv, "--period", "20", "--wait-on-line", t.Ready.Text)
		case w == "{wait}":
			argv = append(argv, "--period", "10")
		case w == "{args}" && t.Args != nil:
			argv = append(argv, "--args", jsonText(t.Args))
		case w == "{args}":
		default:
			argv = append(argv, w)
		}
	}
	if argv == nil {
		return nil, fmt.Errorf("no way to make %s", form)
	}
	return argv, nil
}

func writeFile(name, text string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, []byte(text), 0o600)
}
