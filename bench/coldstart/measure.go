package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"
)

// measure starts an image on a system once, with nothing there before.
func (b *bench) measure(ctx context.Context, s *system, t task, p *path) (r *run, err error) {
	r = &run{Link: p.name, Image: t.Image, System: s.Name, Load: load()}
	if err := b.unfit[[2]string{s.form, t.Image}]; err != nil {
		return r, err
	}
	err = undisturbed(func() error {
		r = &run{Link: p.name, Image: t.Image, System: s.Name, Load: load()}
		return b.measureNode(ctx, s, t, p, r)
	})
	return r, err
}

func (b *bench) measureNode(ctx context.Context, s *system, t task, p *path, r *run) (err error) {
	ctx, cancel := context.WithTimeout(ctx, b.conf.timeout)
	defer cancel()
	n, err := newNode(b.conf.work, b.conf.cgroup)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	if err := b.measureOn(ctx, n, s, t, p, r); err != nil {
		return fmt.Errorf("%w; %s", err, n.logs())
	}
	return nil
}

func (b *bench) measureOn(ctx context.Context, n *node, s *system, t task, p *path, r *run) error {
	c, err := s.up(ctx, b, n, p.host)
	if err != nil {
		return err
	}
	name := ref(p.host, s.form, t.Image)
	if s.warm {
		if _, err := c.(*snapctlClient).output(ctx, "pull", "--wait", "--quiet", name); err != nil {
			return err
		}
		if err := once(ctx, c, c.start, "first", name, t, nil); err != nil {
			return err
		}
	} else if err := b.cold(ctx, n, c, name, t, p, r); err != nil {
		return err
	}
	for i := range b.conf.again {
		took, err := b.again(ctx, c, fmt.Sprintf("again-%d", i), name, t)
		if err != nil {
			return fmt.Errorf("start %d: %w", i+2, err)
		}
		r.Again = append(r.Again, took)
	}
	if s.warm {
		r.Total = median(r.Again)
	}
	return nil
}

// cold is the start that counts.
func (b *bench) cold(ctx context.Context, n *node, c client, name string, t task, p *path, r *run) error {
	if err := dropCaches(); err != nil {
		return err
	}
	cpu, err := n.group.cpu()
	if err != nil {
		return err
	}
	up, connections := p.link.Up.Load(), p.link.Connections.Load()
	b.watch.start()
	begin := time.Now()
	if err := c.pull(ctx, name); err != nil {
		return err
	}
	pulled := time.Now()
	s, err := c.start("first", name, t)
	if err != nil {
		return err
	}
	at, err := s.untilReady(ctx, t.Ready, func() (int, error) { return c.pid(ctx, "first") })
	if err == nil {
		r.Down, r.Line = b.watch.stop()
		r.Up, r.Connections = p.link.Up.Load()-up, p.link.Connections.Load()-connections
		r.Requests = len(r.Line.Requests)
		r.Total = at.Sub(begin).Seconds()
		err = r.account(ctx, n, c, cpu)
		usable, running, terr := c.times(ctx, "first")
		r.phases(begin, pulled, usable, running, at, terr)
	}
	return errors.Join(err, c.stop(context.WithoutCancel(ctx), "first", s))
}

// account notes what the system's processes took.
func (r *run) account(ctx context.Context, n *node, c client, before time.Duration) error {
	after, err := n.group.cpu()
	if err != nil {
		return err
	}
	r.CPU = (after - before).Seconds()
	r.Processes = n.group.processes()
	for _, p := range r.Processes {
		r.Peak += p.Peak
	}
	if s, ok := c.(*snapctlClient); ok {
		out, err := s.output(ctx, "stat", "--json")
		if err != nil {
			return err
		}
		return json.Unmarshal([]byte(out), &r.Stats)
	}
	return nil
}

// phases divides the total. What is not known belongs to the phase after.
func (r *run) phases(begin, pulled, usable, running, at time.Time, err error) {
	if usable.IsZero() {
		usable = pulled
	}
	if err != nil || running.Before(usable) || running.After(at) {
		running = usable
	}
	if usable.Before(begin) || usable.After(at) {
		usable, running = begin, begin
	}
	r.Pull, r.Create, r.Ready = usable.Sub(begin).Seconds(), running.Sub(usable).Seconds(), at.Sub(running).Seconds()
}

// again is a further start; it returns its seconds.
func (b *bench) again(ctx context.Context, c client, name, ref string, t task) (took float64, err error) {
	s, err := c.start(name, ref, t)
	if err != nil {
		return 0, err
	}
	at, err := s.untilReady(ctx, t.Ready, func() (int, error) { return c.pid(ctx, name) })
	return at.Sub(s.begin).Seconds(), errors.Join(err, c.stop(context.WithoutCancel(ctx), name, s))
}

func load() (l float64) {
	b, err := os.ReadFile("/proc/loadavg")
	if err == nil {
		fmt.Sscan(string(b), &l)
	}
	return l
}
