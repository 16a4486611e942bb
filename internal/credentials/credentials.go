// Package credentials finds what to log in with at registries. A [Chain] asks its
// sources one after the other: [Pulls], the secrets that came with pulls through
// the CRI; [Providers], kubelet's credential-provider plugins; and docker's config
// and helpers ([registry.DockerCredentials]).
//
// What a registry has refused is passed over, so that the next secret is tried;
// when nothing is left, and nothing of the asking lies more than a moment back,
// those sources that remember answers have to ask anew.
//
// Invariants: no secret is logged, put into an error, or written to a file. What
// comes from outside is bounded before it is decoded.
package credentials

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/snapfs/snapfs/layers/registry"
)

const (
	brief  = 10 * time.Second // how long it is remembered that a source has nothing, or does not work
	moment = 2 * time.Second  // an answer of just now is not asked for again, whatever happens
)

// A Source has credentials. Credentials returns those for a question, the best
// first, or none; ask.Refused need not be left out. If ask.Anew is set, no answer
// of earlier may stand for one of now, and if ask.Beyond is, what does not end
// later is of use only if nothing else is to be had.
type Source interface {
	Credentials(ctx context.Context, ask registry.Ask) ([]registry.Credential, error)
}

// A Chain is its sources in order. Its Lookup is for [registry.Options]. It is
// safe for concurrent use if the sources are.
type Chain struct {
	// ByImage know what belongs to an image, wherever it comes from; ByHost what
	// belongs to a host. A mirror is not the registry that the image's secrets are
	// for: there, what is known of the host itself goes first.
	ByImage, ByHost []Source
}

func (c *Chain) order(ask registry.Ask) []Source {
	if ask.Mirror {
		return slices.Concat(c.ByHost, c.ByImage)
	}
	return slices.Concat(c.ByImage, c.ByHost)
}

// Lookup returns the next credential to try, or the zero value. An error is one
// only if it kept the last hope away.
func (c *Chain) Lookup(ctx context.Context, ask registry.Ask) (registry.Credential, error) {
	anew := ask.Anew
	ask.Anew = false
	cred, err := c.first(ctx, ask)
	if !anew || !cred.IsZero() || ctx.Err() != nil {
		return cred, err
	}
	ask.Anew = true
	return c.first(ctx, ask)
}

func (c *Chain) first(ctx context.Context, ask registry.Ask) (registry.Credential, error) {
	var late registry.Credential
	var errs []error
	for _, s := range c.order(ask) {
		list, err := s.Credentials(ctx, ask)
		if err != nil {
			errs = append(errs, err)
		}
		for _, cred := range list {
			switch {
			case cred.IsZero() || slices.ContainsFunc(ask.Refused, cred.Same):
			case !cred.Ends.IsZero() && !(cred.Ends.After(ask.Beyond) && cred.Ends.After(time.Now())):
				if late.IsZero() {
					late = cred
				}
			default:
				return cred, nil
			}
		}
	}
	if !late.IsZero() {
		return late, nil
	}
	return registry.Credential{}, errors.Join(errs...)
}

// Docker is docker's config and helpers as a source. All who ask about a host at
// the same time share one answer, and for a moment it remembers of a host that
// there is nothing: a helper is a process.
type Docker struct {
	Lookup func(ctx context.Context, ask registry.Ask) (registry.Credential, error)

	mu    sync.Mutex
	none  map[string]nothing // by host
	under map[string]*lookup // by host
}

type nothing struct {
	at  time.Time
	err error
}

// A lookup is one that is under way.
type lookup struct {
	done chan struct{} // closed when the rest is set
	cred registry.Credential
	err  error
	over bool // who asked has given up: there is no answer
}

var _ Source = (*Docker)(nil)

// Credentials asks docker's config.
func (d *Docker) Credentials(ctx context.Context, ask registry.Ask) ([]registry.Credential, error) {
	for {
		l, mine, n := d.join(ask)
		switch {
		case l == nil:
			return nil, n.err
		case mine:
			d.ask(ctx, l, ask)
		default:
			select {
			case <-l.done:
			case <-ctx.Done():
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case l.over: // but we have not
		case l.err != nil || l.cred.IsZero():
			return nil, l.err
		default:
			return []registry.Credential{l.cred}, nil
		}
	}
}

// join returns the lookup that is under way for a host, or one that is the
// caller's to make, or what is remembered.
func (d *Docker) join(ask registry.Ask) (l *lookup, mine bool, n nothing) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, ok := d.none[ask.Host]
	if age := time.Since(n.at); ok && (age < moment || age < brief && !ask.Anew) {
		return nil, false, n
	}
	if l = d.under[ask.Host]; l != nil {
		return l, false, n
	}
	if d.under == nil {
		d.under = make(map[string]*lookup)
	}
	l = &lookup{done: make(chan struct{})}
	d.under[ask.Host] = l
	return l, true, n
}

func (d *Docker) ask(ctx context.Context, l *lookup, ask registry.Ask) {
	l.over = true // if Lookup panics, the others ask themselves
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.under, ask.Host)
		d.keep(l, ask.Host)
		close(l.done)
	}()
	l.cred, l.err = d.Lookup(ctx, registry.Ask{Host: ask.Host, Image: ask.Image, Mirror: ask.Mirror})
	l.over = ctx.Err() != nil
}

// keep remembers that there is nothing, or that there is something now. mu is held.
func (d *Docker) keep(l *lookup, host string) {
	switch {
	case l.over:
	case l.err == nil && !l.cred.IsZero():
		delete(d.none, host)
	default:
		if d.none == nil || len(d.none) >= maxHosts {
			d.none = make(map[string]nothing)
		}
		d.none[host] = nothing{time.Now(), l.err}
	}
}

const maxHosts = 1024 // of which it is remembered that there is nothing

// errTooMuch says that something from outside is larger than anything useful.
func errTooMuch(what string, have, most int) error {
	return fmt.Errorf("%s: %d, at most %d are read", what, have, most)
}
