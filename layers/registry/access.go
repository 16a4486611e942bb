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
// It has a login, once the host has asked for one, which all requests use. What it
// is refused for is settled by one request at a time, while the others that were
// refused wait; see [access.settle].
type access struct {
	reg   *Registry
	host  *host
	image string
	scope string
	slot  chan struct{} // held by who settles a refusal: it may take requests

	mu  sync.Mutex
	cur *login // nil: the host has not asked
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

// authorize sets req's Authorization header, if one is known to be needed, by a
// login, nil for the current one, and returns it. With an error that wraps ErrDenied,
// the token server has refused that login.
func (a *access) authorize(ctx context.Context, req *http.Request, scopes []string, with *login) (*login, error) {
	l := with
	if l == nil {
		l = a.current()
	}
	if l == nil || with == nil && l.ended(time.Now()) {
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
	l := &login{access: a, challenge: c, begun: time.Now()}
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
			l.cred = cred
			a.reg.log.Debug("logging in", "host", q.Host, "image", a.image, "with", cred)
			return l, nil
		}
		q.Refused = append(slices.Clip(q.Refused), cred)
	}
	if c.scheme == auth.BasicAuth || anonymous {
		return nil, nil
	}
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

// lately is how long after a request came through a credential is known to be good.
const lately = 10 * time.Second

// settle decides what becomes of a request that was refused: it is made again, or it
// has been made and resp is the answer, or, with neither, it is denied.
//
// A host that asks for the first time gets a login at once, for all requests. A token
// that was good before may have gone stale: the same credential gets another, once
// for each request. If a new token is refused, too, while other requests come through, it is
// this request that is not allowed. Else the credential is of no use, and others are
// tried, with this request alone: only what is accepted becomes the login of all.
func (a *access) settle(ctx context.Context, h *repoHost, c *call, r *refusal, denied **refusal, fresh *bool) (resp *http.Response, again bool, err error) {
	if err := a.lock(ctx); err != nil {
		return nil, false, err
	}
	defer a.unlock()
	l := r.login
	if a.current() != l {
		return nil, true, nil // somebody was faster
	}
	ch, err := a.challenge(ctx, l, r.resp)
	if err != nil {
		return nil, false, err
	}
	var accepted int64
	if l != nil {
		a.reg.stats.Refreshes.Add(1)
		accepted = l.accepted.Load()
	}
	if l == nil || r.resp != nil && l.renewable() && accepted != 0 && !*fresh {
		*fresh = true
		next, err := a.ask(ctx, ch, Ask{}, false)
		if next == nil || err != nil {
			return nil, false, err
		}
		if l != nil && next.cred.Same(l.cred) {
			next.accepted.Store(accepted)
		}
		a.swap(l, next)
		return nil, true, nil
	}
	if r.resp != nil && l.renewable() && time.Since(time.Unix(0, accepted)) < lately {
		return nil, false, nil
	}
	resp, err = a.tryOthers(ctx, h, c, l, ch, denied)
	return resp, false, err
}

// tryOthers makes a request with other credentials than that of l, one after the
// other, and at last without any. When nothing helps that is known for a while: then
// sources are not asked anew, and only what was not tried is. The slot is held.
func (a *access) tryOthers(ctx context.Context, h *repoHost, c *call, l *login, ch challenge, denied **refusal) (*http.Response, error) {
	known := l.accepted.Load() == 0 && time.Since(l.exhausted) < a.reg.opt.Timeouts.Denied
	q, anonymous := Ask{Anew: !known}, known || l.cred.IsZero()
	if known {
		q.Refused = l.tried
	} else if !l.cred.IsZero() {
		q.Refused = []Credential{l.cred}
	}
	for {
		next, err := a.ask(ctx, ch, q, anonymous)
		if err != nil {
			return nil, err
		}
		if next == nil {
			break
		}
		resp, r, err := h.attempt(ctx, c, next)
		if err != nil {
			return nil, err
		}
		if r == nil {
			a.swap(l, next)
			return resp, nil
		}
		*denied = (*denied).worse(r)
		if next.cred.IsZero() {
			break
		}
		q.Refused = append(slices.Clip(q.Refused), next.cred)
	}
	l.accepted.Store(0)
	l.tried = q.Refused
	if !known {
		l.exhausted = time.Now()
	}
	return nil, nil
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
	if fresh.cred.Same(l.cred) {
		fresh.accepted.Store(l.accepted.Load())
	}
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
