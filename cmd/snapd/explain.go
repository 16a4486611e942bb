package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/internal/containers"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/images"
	"github.com/snapfs/snapfs/internal/meter"
	"github.com/snapfs/snapfs/layers"
)

// explain gathers what is known of an image, or of a container and its image.
func (d *daemon) explain(_ context.Context, a control.ExplainArgs) (control.Explanation, error) {
	if a.Type != "" && a.Type != "container" && a.Type != "image" {
		return control.Explanation{}, &control.Error{Code: control.CodeInvalid, Message: fmt.Sprintf("type %q: want container or image", a.Type)}
	}
	if a.Type != "image" {
		e, err := d.explainContainer(a.Name)
		if a.Type == "container" || !isNotFound(err) {
			return e, err
		}
	}
	e := control.Explanation{Since: d.started.UTC()}
	left, err := d.images.Left(a.Name)
	if err != nil {
		return e, err
	}
	e.Left = left
	k, err := d.images.Find(a.Name)
	if isNotFound(err) && left != nil {
		return e, nil
	}
	if isNotFound(err) && a.Type == "" {
		err = &control.Error{Code: control.CodeNotFound, Message: "no such container or image: " + a.Name}
	}
	if err != nil {
		return e, err
	}
	if s, ok := d.starts.Image(string(k.Desc.Digest)); ok {
		e.Start = d.complete(&s)
	}
	return e, d.explainImage(&e, k)
}

func isNotFound(err error) bool {
	c, ok := errors.AsType[*control.Error](err)
	return errors.Is(err, fs.ErrNotExist) || ok && c.Code == control.CodeNotFound
}

func (d *daemon) explainContainer(name string) (control.Explanation, error) {
	e := control.Explanation{Since: d.started.UTC()}
	c, err := d.containers.Resolve(name)
	if err != nil {
		return e, err
	}
	e.Container = &c
	if s, ok := d.starts.Container(c.ID); ok {
		e.Start = d.complete(&s)
	}
	k, err := d.images.Find(string(containers.Manifest(c)))
	if isNotFound(err) { // removed by force
		return e, nil
	}
	if err != nil {
		return e, err
	}
	return e, d.explainImage(&e, k)
}

// explainImage adds what is known of an image.
func (d *daemon) explainImage(e *control.Explanation, k *images.Known) error {
	detail, err := d.images.Detail(k)
	if err != nil {
		return err
	}
	detail.Manifest, detail.Config = nil, nil // snapctl inspect has them
	e.Image = detail
	if q := k.Quarantine; q != nil && q.Object != "" {
		if sum, err := layers.ParseSum(digest.Digest(q.Object)); err == nil {
			detail.QuarantineFile = d.images.Paths(k, []layers.Sum{sum})[sum]
		}
	}
	if s, ok := d.starts.Pulled(string(k.Desc.Digest)); ok {
		e.Pull = &s
	}
	for _, c := range d.containers.List(false) {
		if containers.Manifest(c) == k.Desc.Digest {
			e.Running = append(e.Running, c.Name)
		}
	}
	e.Misses = misses(d.meter.Of(k.Layers))
	if e.Start != nil {
		d.namePaths(k, e.Start)
	}
	return nil
}

// complete adds to the record of a start that is not finished what the
// container's monitor knows already: it tells others at the same time as us.
func (d *daemon) complete(s *control.Start) *control.Start {
	if s.Ready > 0 || s.Container == "" {
		return s
	}
	c, err := d.containers.Resolve(s.Container)
	if err != nil || c.Started.Before(s.Began) { // gone; or not started again yet
		return s
	}
	s.Running = max(1, c.Started.Sub(s.Began))
	switch {
	case !c.Ready.IsZero():
		s.Ready, s.ReadyBy = max(1, c.Ready.Sub(s.Began)), c.ReadyBy
	case !c.Finished.Before(c.Started):
		s.Ready = max(1, c.Finished.Sub(s.Began))
	}
	return s
}

// misses tells what a meter has counted.
func misses(s meter.Sum) control.Misses {
	return control.Misses{
		N: s.Took.Total(), Failed: s.Failed, Bytes: s.Bytes, Waited: s.Took.Sum,
		P50: s.Took.Quantile(0.5), P99: s.Took.Quantile(0.99),
	}
}

// namePaths says what the objects that a start waited for are called.
func (d *daemon) namePaths(k *images.Known, s *control.Start) {
	sums := make([]layers.Sum, len(s.Waits))
	for i, w := range s.Waits {
		var err error
		if sums[i], err = layers.ParseSum(digest.Digest(w.Object)); err != nil {
			return // a record that is damaged, and still JSON
		}
	}
	paths := d.images.Paths(k, sums)
	for i := range s.Waits {
		s.Waits[i].Path = paths[sums[i]]
	}
}
