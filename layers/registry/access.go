package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker/auth"
)

// access is the right to do one thing with one repository on one host.
//
// It has a login, once the host has asked for one. A login that is refused is
// replaced by the next: other credentials for the image one after the other, then
// none at all. A token that was good before and is refused now has gone stale, so
// there the same credential is asked for again first. When there is nothing left to
// try, what the registry has said is the answer, and the next request begins anew.
type access struct {
	reg   *Registry
	host  *host
	image string
	scope string
	slot  chan struct{} // held while a login is replaced, so that one caller asks for all

	mu  sync.Mutex
	cur *login // nil: the host has not asked, or refused all
}

// maxRefused bounds the credentials that are tried for one request.
const maxRefused = 8

func newAccess(r *Registry, h *host, rp *repo, right string) *access {
	return &access{
		reg: r, host: h, image: rp.domain + "/" + rp.path, scope: "repository:" + rp.path + ":" + right,
		slot: make(chan struct{}, 1),
	}
}

func (a *access) current() *login {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cur
}

// swap replaces old, unless somebody else has.
func (a *access) swap(old, fresh *login) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cur == old {
		a.cur = fresh
	}
}

// lock takes the slot.
func (a *access) lock(ctx context.Context) error {
	select {
	case a.slot <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (a *access) unlock() { <-a.slot }

// authorize sets req's Authorization header, if one is known to be needed, and
// returns the login it is from. With an error that wraps ErrDenied, the token
// server has refused that login.
func (a *access) authorize(ctx context.Context, req *http.Request, scopes []string) (*login, error) {
	l := a.current()
	if l == nil || l.ended(time.Now()) {
		var err error
		if l, err = a.begin(ctx, l, req); l == nil || err != nil {
			return nil, err
		}
	}
	scopes = append([]string{a.scope}, scopes...)
	value, err := l.authorization(ctx, scopes)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return l, tokenError(req, err, l.cred)
	}
	if !l.renewable() {
		l.keep(scopes, nil)
	}
	req.Header.Set("Authorization", value)
	return l, nil
}

// begin returns a login where there is none yet, or one whose credential has
// ended. As long as the host has not asked here, it is met as it has asked in
// other repositories: that saves the request that would only be answered with 401.
func (a *access) begin(ctx context.Context, old *login, req *http.Request) (*login, error) {
	known := a.host.challenge.Load()
	if old != nil {
		known = &old.challenge
	}
	if known == nil || req.URL.Host != a.host.Host {
		return nil, nil
	}
	if err := a.lock(ctx); err != nil {
		return nil, err
	}
	defer a.unlock()
	if l := a.current(); l != old {
		return l, nil // somebody was faster
	}
	ask := Ask{}
	if old != nil {
		ask.Beyond = old.cred.Ends
	}
	l, err := a.ask(ctx, *known, ask, false)
	if err != nil {
		return nil, err
	}
	a.swap(old, l)
	return l, nil
}

// ask makes a login with the next credential that may help, or without any. nil
// is that nothing is left.
func (a *access) ask(ctx context.Context, c challenge, q Ask, anonymous bool) (*login, error) {
	q.Host, q.Image, q.Mirror = a.host.Host, a.image, a.host.ns != ""
	l := &login{access: a, challenge: c, begun: time.Now(), anonymous: anonymous}
	for a.reg.opt.Credentials != nil && len(q.Refused) < maxRefused {
		cred, err := a.credential(ctx, q)
		if err != nil {
			return nil, err
		}
		if cred.IsZero() || slices.ContainsFunc(q.Refused, cred.Same) {
			break
		}
		if !cred.Ends.After(l.begun) {
			cred.Ends = time.Time{} // it is as good as any other, then
		}
		if c.meets(cred) {
			l.cred, l.refused = cred, q.Refused
			a.reg.log.Debug("logging in", "host", q.Host, "image", a.image, "with", cred)
			return l, nil
		}
		q.Refused = append(slices.Clip(q.Refused), cred)
	}
	if c.scheme == auth.BasicAuth || anonymous {
		return nil, nil
	}
	l.refused = q.Refused
	return l, nil
}

// credential asks for one. That nobody answers in time is no denial: what is slow
// now may have an answer ready for the next attempt.
func (a *access) credential(ctx context.Context, q Ask) (Credential, error) {
	within, cancel := context.WithTimeout(ctx, a.reg.opt.Timeouts.NoProgress)
	defer cancel()
	cred, err := a.reg.opt.Credentials(within, q)
	switch {
	case err == nil:
		return cred, nil
	case ctx.Err() != nil:
		return Credential{}, context.Cause(ctx)
	case within.Err() != nil:
		return Credential{}, &transportError{method: "credentials for", url: a.image, err: errNoAnswer}
	}
	return Credential{}, fmt.Errorf("%w: credentials: %w", ErrDenied, err)
}

// next takes note that used, nil if nothing was sent, did not suffice: a host has
// answered with resp, or a token server has refused it and resp is nil. It reports
// whether there is now another login to try.
func (a *access) next(ctx context.Context, used *login, resp *http.Response) (bool, error) {
	if err := a.lock(ctx); err != nil {
		return false, err
	}
	defer a.unlock()
	if a.current() != used {
		return true, nil // somebody was faster
	}
	c, err := a.challenge(ctx, used, resp)
	if err != nil {
		return false, err
	}
	q, anonymous := Ask{}, false
	if used != nil {
		a.reg.stats.Refreshes.Add(1)
		if used.cred.IsZero() && len(used.refused) > 0 { // all were refused before
			a.swap(used, nil)
			return false, nil
		}
		if !used.accepted.Load() || !used.renewable() {
			q.Anew = true
			q.Refused, anonymous = used.refused, used.anonymous
			if used.cred.IsZero() {
				anonymous = true
			} else {
				q.Refused = append(slices.Clip(q.Refused), used.cred)
			}
		}
	}
	l, err := a.ask(ctx, c, q, anonymous)
	a.swap(used, l)
	return l != nil, err
}

// challenge is how the host asks now, or has asked before.
func (a *access) challenge(ctx context.Context, used *login, resp *http.Response) (challenge, error) {
	if resp != nil && resp.StatusCode == http.StatusUnauthorized {
		c, err := challengeOf(ctx, a.host.Host, resp.Header)
		switch {
		case err == nil && used == nil && resp.Request.URL.Host == a.host.Host:
			a.host.challenge.Store(c.general())
		case err == nil:
		case used != nil && resp.Header.Get("WWW-Authenticate") == "":
			return used.challenge, nil
		}
		return c, err
	}
	return used.challenge, nil
}

// renew replaces a login that still works by one that lasts longer.
func (a *access) renew(l *login, scopes []string) error {
	t := a.reg.opt.Timeouts
	ctx, cancel := context.WithTimeout(a.reg.base, t.NoProgress+t.Header)
	defer cancel()
	q := Ask{}
	if l.near(time.Now()) {
		q.Beyond = l.cred.Ends
	}
	fresh, err := a.ask(ctx, l.challenge, q, false)
	if err != nil {
		return err
	}
	switch {
	case fresh == nil:
		return errors.New("no credential is left")
	case fresh.renewable():
		_, err = fresh.authorization(ctx, scopes)
		if err != nil {
			return shortErr(err)
		}
	case fresh.cred.Same(l.cred) && !fresh.cred.Ends.After(l.cred.Ends):
		return errors.New("no newer credential")
	}
	a.reg.stats.Renewals.Add(1)
	a.swap(l, fresh)
	return nil
}

// tokenClient is the client for token servers, and the header for them.
func (a *access) tokenClient() (*http.Client, http.Header) {
	c := *a.host.Client
	c.Transport = tokenTransport{reg: a.reg, base: c.Transport}
	c.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		// A redirected POST would carry the password in its body.
		if len(via) > maxHops || req.Method != http.MethodGet && req.URL.Host != via[0].URL.Host {
			return fmt.Errorf("%w: token server redirects to %s", ErrProtocol, cleanURL(req.URL))
		}
		return nil
	}
	header := a.host.Header.Clone()
	if header == nil {
		header = http.Header{}
	}
	header.Set("User-Agent", a.reg.opt.UserAgent)
	return &c, header
}

// conceal takes a text away in which a server repeats a secret that it was sent.
func conceal(text string, secrets ...string) string {
	low := strings.ToLower(text)
	for _, s := range secrets {
		if len(s) >= 4 && strings.Contains(low, strings.ToLower(s)) {
			return "(a message that repeats a secret)"
		}
	}
	return text
}
