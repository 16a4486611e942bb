package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
)

// errNoAnswer is the cause of a request that was given up by its watch.
var errNoAnswer = errors.New("no answer in time")

// A call is one request, perhaps repeated with other credentials and redirected.
type call struct {
	method   string
	url      *url.URL
	header   http.Header
	body     func() (io.ReadCloser, error) // nil: none; opened anew for each attempt
	size     int64                         // of body
	access   *access                       // nil: no credentials
	scopes   []string                      // further token scopes
	deadline time.Time                     // for the header of the response
	moved    func()                        // called at a redirect to another host, if not nil
	stop     bool                          // such a redirect is not followed: send returns no response, but where it leads
}

// send makes the call and returns the response with its body, which is watched
// for stalls and must be closed. Redirects of a GET are followed, without
// credentials once they lead to another host; target is then where the last
// one led. Any other status that is not 2xx is returned as *StatusError.
func (h *repoHost) send(ctx context.Context, c *call) (resp *http.Response, target *url.URL, err error) {
	for hop := 0; ; hop++ {
		resp, err = h.authorized(ctx, c)
		if err != nil {
			return nil, target, err
		}
		if resp.StatusCode/100 == 2 {
			return resp, target, nil
		}
		if !isRedirect(resp.StatusCode) || c.method != http.MethodGet {
			return nil, target, statusError(resp, target != nil)
		}
		next, err := h.redirected(c.url, resp)
		drain(resp)
		if err != nil {
			return nil, target, err
		}
		if hop == maxHops {
			return nil, target, fmt.Errorf("%s %s: %w: more than %d redirects", c.method, cleanURL(c.url), ErrProtocol, maxHops)
		}
		d := *c
		d.url = next
		if target != nil || !sameHost(c.url, resp, next) {
			d.access = nil
			target = next
			if c.moved != nil {
				c.moved()
			}
			if c.stop {
				return nil, target, nil
			}
		}
		c = &d
		h.repo.reg.stats.Redirects.Add(1)
	}
}

// sameHost reports whether to, which the answer to a request for asked names, is
// on the same host. Loopback hosts may have been asked for https and have
// answered http (docker.NewHTTPFallback).
func sameHost(asked *url.URL, resp *http.Response, to *url.URL) bool {
	return to.Host == asked.Host && (to.Scheme == asked.Scheme || to.Scheme == resp.Request.URL.Scheme)
}

func isRedirect(code int) bool {
	switch code {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// redirected is where resp sends us. It refuses to leave TLS.
func (h *repoHost) redirected(from *url.URL, resp *http.Response) (*url.URL, error) {
	loc, err := resp.Location()
	if err != nil {
		return nil, fmt.Errorf("GET %s: %w: %w", cleanURL(from), ErrProtocol, err)
	}
	secure := from.Scheme == "https" && resp.Request.URL.Scheme == "https"
	switch {
	case loc.Scheme == "https":
	case loc.Scheme == "http" && (!secure || h.repo.reg.plain[loc.Host] || docker.IsLocalhost(from.Host) && docker.IsLocalhost(loc.Host)):
	default:
		return nil, fmt.Errorf("GET %s: %w: redirected from %s to %s", cleanURL(from), ErrProtocol, from.Scheme, clip(cleanURL(loc)))
	}
	loc.User, loc.Fragment = nil, ""
	return loc, nil
}

// maxRounds bounds the repetitions of one request because others have changed the login.
const maxRounds = 8

// A refusal is a request that its login did not suffice for.
type refusal struct {
	login *login         // nil: there was none
	resp  *http.Response // of the host, closed; nil: the token server refused the login itself
	err   error
}

// worse returns which of two refusals, perhaps none, says more: what was said to a
// credential, rather than to anybody, and the first rather than a later one.
func (r *refusal) worse(s *refusal) *refusal {
	if r == nil || s.login.rank() > r.login.rank() {
		return s
	}
	return r
}

// authorized makes one request, and repeats it when the answer is a challenge, as
// long as there is another login to try. A 403 to a token is treated like a 401:
// some registries answer so to an old one.
func (h *repoHost) authorized(ctx context.Context, c *call) (*http.Response, error) {
	var denied *refusal
	fresh := false
	for range maxRounds {
		resp, r, err := h.attempt(ctx, c, nil)
		if r == nil {
			return resp, err
		}
		denied = denied.worse(r)
		again := false
		resp, again, err = c.access.settle(ctx, h, c, r, &denied, &fresh)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", c.method, cleanURL(c.url), err)
		}
		if !again {
			if resp == nil {
				return nil, denied.err
			}
			return resp, nil
		}
	}
	return nil, denied.err
}

// attempt makes one request with a login; nil is that which the access has.
func (h *repoHost) attempt(ctx context.Context, c *call, with *login) (*http.Response, *refusal, error) {
	req, w, err := h.request(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	used := with
	if c.access != nil {
		if used, err = c.access.authorize(w.ctx, req, c.scopes, with); err != nil {
			w.close()
			if used != nil && errors.Is(err, ErrDenied) {
				return nil, &refusal{used, nil, err}, nil
			}
			return nil, nil, w.explain(ctx, c, err)
		}
	}
	resp, err := h.roundTrip(ctx, c, req, w)
	if err != nil {
		return nil, nil, err
	}
	if c.access != nil && isRefusal(resp.StatusCode, used != nil) {
		return nil, &refusal{used, resp, statusError(resp, false)}, nil
	}
	if used != nil {
		used.accepted.Store(time.Now().UnixNano())
	}
	return resp, nil, nil
}

// isRefusal reports whether a status asks for another login.
func isRefusal(code int, token bool) bool {
	return code == http.StatusUnauthorized || code == http.StatusForbidden && token
}

func (h *repoHost) request(ctx context.Context, c *call) (*http.Request, *watch, error) {
	t := h.repo.reg.opt.Timeouts
	w := newWatch(ctx, t.Stall, min(t.Header, max(time.Until(c.deadline), t.Header/10)))
	req, err := http.NewRequestWithContext(w.ctx, c.method, c.url.String(), nil)
	if err != nil {
		w.close()
		return nil, nil, err
	}
	if c.url.Host == h.Host && c.access != nil { // a header of hosts.toml may be a secret too
		for k, v := range h.Header {
			req.Header[k] = append([]string(nil), v...)
		}
	}
	for k, v := range c.header {
		req.Header[k] = v
	}
	req.Header.Set("User-Agent", h.repo.reg.opt.UserAgent)
	req.Header.Set("Accept-Encoding", "identity")
	if c.body != nil {
		rc, err := c.body()
		if err != nil {
			w.close()
			return nil, nil, err
		}
		up := &upload{rc: rc, w: w, sent: &h.repo.reg.stats.Sent, stall: 2 * t.Stall, commit: t.Commit}
		req.Body, req.ContentLength = up, c.size
		if c.size == 0 { // a Body of unknown length 0 would be sent chunked
			req.Body = http.NoBody
			if err := rc.Close(); err != nil {
				w.close()
				return nil, nil, err
			}
		}
		req.GetBody = func() (io.ReadCloser, error) { // after a failed TLS handshake with a loopback host
			rc, err := c.body()
			return &upload{rc: rc, w: w, sent: up.sent, stall: up.stall, commit: up.commit}, err
		}
	}
	return req, w, nil
}

func (h *repoHost) roundTrip(ctx context.Context, c *call, req *http.Request, w *watch) (*http.Response, error) {
	h.repo.reg.stats.Requests.Add(1)
	resp, err := h.bare.Do(req)
	if err != nil {
		w.close()
		if errors.Is(context.Cause(w.ctx), errNoAnswer) {
			h.repo.reg.stats.Stalls.Add(1)
		}
		return nil, w.explain(ctx, c, cleanErr(err))
	}
	w.header(c.deadline)
	if resp.ProtoMajor >= 2 && req.URL.Host == h.Host {
		h.many.Store(true)
	}
	resp.Body = &watched{rc: resp.Body, w: w, reg: h.repo.reg, from: c.method + " " + cleanURL(c.url), parent: ctx}
	return resp, nil
}

// drain reads the little that an answer without interest has, and closes it:
// only then is its connection used again (net/http, Response.Body).
func drain(resp *http.Response) {
	io.CopyN(io.Discard, resp.Body, maxErrorBody)
	resp.Body.Close()
}

const maxErrorBody = 8 << 10 // bytes of an error document that are read

// statusError turns an answer into an error and closes it. redirected says that
// the answer came from where the registry sent us: there, 401 and 403 mean
// that the signed address is stale, which has nothing to do with credentials.
func statusError(resp *http.Response, redirected bool) error {
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody)) // the status says enough without it
	err := &StatusError{
		Method: resp.Request.Method,
		URL:    cleanURL(resp.Request.URL),
		Code:   resp.StatusCode,
		Detail: detail(text, sent(resp.Request)...),
		After:  retryAfter(resp.Header.Get("Retry-After"), time.Now()),
	}
	if redirected && errors.Is(err, ErrDenied) {
		return &transportError{method: resp.Request.Method, url: err.URL, err: fmt.Errorf("redirect target answers %d %s", err.Code, http.StatusText(err.Code))}
	}
	return err
}

// retryAfter reads the two forms of the header: seconds, or a date (RFC 9110, 10.2.3).
func retryAfter(s string, now time.Time) time.Duration {
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(s); err == nil {
		return max(0, t.Sub(now))
	}
	return 0
}

// sent are the secrets that a request has told.
func sent(req *http.Request) []string {
	_, value, ok := strings.Cut(req.Header.Get("Authorization"), " ")
	if !ok {
		return nil
	}
	if _, password, ok := req.BasicAuth(); ok {
		return []string{value, password}
	}
	return []string{value}
}

// tokenError says what a failure to get a token means for the request.
func tokenError(req *http.Request, err error, cred Credential) error {
	if se, ok := errors.AsType[remoteserrors.ErrUnexpectedStatus](err); ok {
		u, uerr := url.Parse(se.RequestURL)
		if uerr != nil {
			u = req.URL
		}
		e := &StatusError{Method: se.RequestMethod, URL: cleanURL(u), Code: se.StatusCode, Detail: detail(se.Body, cred.Secret, basic(cred))}
		switch {
		case e.transient():
			return e
		default:
			return fmt.Errorf("%s %s: %w: %w", req.Method, cleanURL(req.URL), ErrDenied, e)
		}
	}
	return &transportError{method: req.Method, url: cleanURL(req.URL), err: fmt.Errorf("token: %w", shortErr(err))}
}

// shortErr drops the query of the token server's address, and what it has said, from an error.
func shortErr(err error) error {
	if se, ok := errors.AsType[remoteserrors.ErrUnexpectedStatus](err); ok {
		return fmt.Errorf("token server answers %s", clip(se.Status))
	}
	if ue, ok := errors.AsType[*url.Error](err); ok {
		return ue.Err
	}
	if strings.ContainsAny(err.Error(), "\n\r") {
		return errors.New(clip(err.Error()))
	}
	return err
}

// minProgress is how many bytes must come in a stall window: a server that
// drips slower is as bad as a silent one.
const minProgress = 4 << 10

// A watch ends a request of which nothing comes. It measures only while
// somebody waits: a slow reader of a body is no stall.
type watch struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	stall  time.Duration
	left   time.Duration // of the current window
	got    int           // bytes in the current window
}

func newWatch(ctx context.Context, stall, header time.Duration) *watch {
	w := &watch{stall: stall}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.timer = time.AfterFunc(header, func() { w.cancel(errNoAnswer) })
	return w
}

// header notes that the header has come; the first window of the body may not
// go much beyond the deadline of the retries.
func (w *watch) header(deadline time.Time) {
	w.timer.Stop()
	w.left = min(w.stall, max(time.Until(deadline), w.stall/10))
}

func (w *watch) close() {
	w.timer.Stop()
	w.cancel(nil)
}

// explain names the request, and says when it was the watch that ended it.
func (w *watch) explain(parent context.Context, c *call, err error) error {
	if parent.Err() != nil {
		return fmt.Errorf("%s %s: %w", c.method, cleanURL(c.url), parent.Err())
	}
	if _, ok := errors.AsType[*StatusError](err); ok || errors.Is(err, ErrDenied) {
		return err
	}
	if _, ok := errors.AsType[*transportError](err); ok {
		return err
	}
	if errors.Is(context.Cause(w.ctx), errNoAnswer) {
		err = errNoAnswer
	}
	return &transportError{method: c.method, url: cleanURL(c.url), err: err}
}

// watched is a response body under a watch.
type watched struct {
	rc     io.ReadCloser
	w      *watch
	reg    *Registry
	from   string
	parent context.Context // of the request: tells its end from the watch's
}

func (b *watched) Read(p []byte) (int, error) {
	w := b.w
	if len(p) == 0 {
		return b.rc.Read(p)
	}
	allowed, err := b.reg.limit.take(b.parent, len(p))
	if err != nil {
		return 0, &bodyError{b.from, err}
	}
	start := time.Now()
	w.timer.Reset(max(w.left, time.Millisecond))
	n, err := b.rc.Read(p[:allowed])
	w.timer.Stop()
	b.reg.limit.back(allowed - n)
	b.reg.stats.Bytes.Add(int64(n))
	w.left -= time.Since(start)
	if w.got += n; w.got >= minProgress {
		w.got, w.left = 0, w.stall
	}
	if err == nil || err == io.EOF {
		return n, err
	}
	if errors.Is(context.Cause(w.ctx), errNoAnswer) {
		b.reg.stats.Stalls.Add(1)
		err = errNoAnswer
	}
	if b.parent.Err() != nil {
		err = b.parent.Err()
	}
	return n, &bodyError{b.from, err}
}

func (b *watched) Close() error {
	b.w.close()
	return b.rc.Close()
}

// A bodyError is a body that broke off. It may be asked for again.
type bodyError struct {
	from string
	err  error
}

func (e *bodyError) Error() string        { return e.from + ": body: " + e.err.Error() }
func (e *bodyError) Unwrap() error        { return e.err }
func (e *bodyError) Is(target error) bool { return target == ErrUnavailable }

// upload is a request body under a watch: each read by the transport shows that
// the bytes before it have gone out.
type upload struct {
	rc     io.ReadCloser
	w      *watch
	sent   *atomic.Int64
	stall  time.Duration
	commit time.Duration // for the answer, once all has been read
}

func (u *upload) Read(p []byte) (int, error) {
	n, err := u.rc.Read(p)
	u.sent.Add(int64(n))
	if err == nil {
		u.w.timer.Reset(u.stall)
	} else {
		u.w.timer.Reset(u.commit)
	}
	return n, err
}

func (u *upload) Close() error { return u.rc.Close() }
