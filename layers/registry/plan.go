package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"

	"github.com/snapfs/snapfs/layers"
)

// enough is how many bytes of progress forgive the failures before them.
const enough = 64 << 10

// A plan decides which host to ask next, and when, and when to give up.
type plan struct {
	rp    *repo
	hosts []*try
	last  time.Time // of the start or of progress
	cur   *try

	patience time.Duration // without progress
}

// A try is what a plan knows of one host.
type try struct {
	*repoHost
	n     int       // failures without progress
	dead  bool      // it cannot give what is asked for
	after time.Time // not before
	err   error
}

// plan begins a plan over the hosts that can do what caps says.
func (rp *repo) plan(caps docker.HostCapabilities) (*plan, error) {
	p := &plan{rp: rp, last: time.Now(), patience: rp.reg.opt.Timeouts.NoProgress}
	for _, h := range rp.hosts {
		if h.Capabilities.Has(caps) {
			p.hosts = append(p.hosts, &try{repoHost: h})
		}
	}
	if len(p.hosts) == 0 {
		return nil, fmt.Errorf("%s: no configured host can do this: %w", rp.domain, ErrUnsupported)
	}
	return p, nil
}

// next returns the host to ask, after any pause it needs, and until when it may
// keep silent. It fails when no host is left, or patience is.
func (p *plan) next(ctx context.Context) (*repoHost, time.Time, error) {
	now := time.Now()
	deadline := p.last.Add(p.patience)
	best := p.pick(now)
	if best == nil {
		return nil, deadline, p.give()
	}
	if best.n > 0 {
		p.rp.reg.stats.Retries.Add(1)
		if wait := best.after.Sub(now); wait > 0 {
			if now.Add(wait).After(deadline) {
				return nil, deadline, p.give()
			}
			if err := sleep(ctx, wait); err != nil {
				return nil, deadline, err
			}
		}
	}
	if !time.Now().Before(deadline) {
		return nil, deadline, p.give()
	}
	if p.cur != nil && p.cur != best {
		p.rp.reg.stats.Failovers.Add(1)
	}
	p.cur = best
	return best.repoHost, deadline, nil
}

// pick prefers the host that failed least, then one that is not down, then the
// order of the configuration.
func (p *plan) pick(now time.Time) *try {
	var best *try
	rank := func(t *try) int {
		r := 2 * t.n
		if t.isDown(now) {
			r++
		}
		return r
	}
	for _, t := range p.hosts {
		if t.dead || t.n >= p.rp.reg.opt.Timeouts.Attempts {
			continue
		}
		if best == nil || rank(t) < rank(best) {
			best = t
		}
	}
	return best
}

// fail notes that the host that next returned failed, after n bytes of progress.
func (p *plan) fail(n int64, err error) {
	t, to := p.cur, p.rp.reg.opt.Timeouts
	p.progress(n)
	t.err = err
	retry, after := transient(err)
	if !retry {
		t.dead = true
		return
	}
	t.n++
	if errors.Is(err, syscall.ECONNREFUSED) {
		t.n++ // nobody is there: little hope
	}
	pause := min(to.MaxBackoff, to.Backoff<<min(t.n-1, 16))
	pause = pause/2 + rand.N(pause/2+1)
	t.after = time.Now().Add(max(pause, min(after, to.MaxBackoff)))
	if _, ok := errors.AsType[*transportError](err); ok && len(p.hosts) > 1 {
		t.down.Store(time.Now().Add(to.Down).UnixNano())
	}
}

// progress notes n bytes of the host that next returned.
func (p *plan) progress(n int64) {
	if n >= minProgress {
		p.last = time.Now()
	}
	if n >= enough {
		p.cur.n = 0
	}
	if n > 0 {
		p.cur.down.Store(0)
	}
}

// give is the error of a plan that has come to its end.
func (p *plan) give() error {
	var errs hostErrors
	for _, t := range p.hosts {
		if t.err != nil {
			errs = append(errs, t.err)
		}
	}
	switch len(errs) {
	case 0:
		return fmt.Errorf("%s: %w: no answer for %v", p.rp.domain, ErrUnavailable, p.patience)
	case 1:
		return errs[0]
	}
	return errs
}

// run asks one host after the other until op succeeds. op returns how many
// bytes it got further.
func (p *plan) run(ctx context.Context, op func(h *repoHost, deadline time.Time) (int64, error)) error {
	for {
		h, deadline, err := p.next(ctx)
		if err != nil {
			return err
		}
		n, err := op(h, deadline)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		p.rp.reg.log.Debug("request failed", "host", h.Host, "err", err)
		p.fail(n, err)
	}
}

// transient reports whether a host that answered err may do better later, and
// how long it wants to be left alone.
func transient(err error) (bool, time.Duration) {
	if _, ok := errors.AsType[*finalError](err); ok {
		return false, 0
	}
	if se, ok := errors.AsType[*StatusError](err); ok {
		return se.transient(), se.After
	}
	if _, ok := errors.AsType[*bodyError](err); ok {
		return true, 0
	}
	if _, ok := errors.AsType[*transportError](err); !ok {
		return errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, ErrProtocol), 0
	}
	if errors.Is(err, ErrProtocol) {
		return false, 0
	}
	if de, ok := errors.AsType[*net.DNSError](err); ok && de.IsNotFound {
		return false, 0
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return false, 0
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return false, 0
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return false, 0
	}
	if _, ok := errors.AsType[*layers.DigestError](err); ok {
		return false, 0
	}
	return true, 0
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
