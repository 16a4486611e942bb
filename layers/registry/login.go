package registry

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker/auth"
	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
)

// A Credential is what one logs in with at a registry. The zero value is none.
// It prints without its secrets.
type Credential struct {
	User string
	// Secret is the password of User; if User is "", an identity token (the
	// refresh token of the OAuth flow, as docker login leaves it).
	Secret string
	// Bearer is a registry token: it goes to the registry as it is. With it,
	// User and Secret mean nothing.
	Bearer string
	// Ends is when it loses its worth; zero: not known.
	Ends time.Time
	// Source says where it is from, for people: "docker config".
	Source string
}

// IsZero reports whether c is no credential.
func (c Credential) IsZero() bool { return c.Secret == "" && c.Bearer == "" }

// Same reports whether c and d are the same secret, wherever they are from.
func (c Credential) Same(d Credential) bool {
	return c.User == d.User && c.Secret == d.Secret && c.Bearer == d.Bearer
}

// Format writes where c is from, whatever the verb.
func (c Credential) Format(f fmt.State, _ rune) {
	switch {
	case c.IsZero():
		fmt.Fprint(f, "no credential")
	default:
		fmt.Fprintf(f, "credential from %s", c.Source)
	}
}

// LogValue is what Format writes.
func (c Credential) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(c)) }

var (
	_ fmt.Formatter  = Credential{}
	_ slog.LogValuer = Credential{}
)

// An Ask is a question for a credential; see [Options].
type Ask struct {
	Host   string // that wants to know who we are, with its port where it has one
	Image  string // the repository, "docker.io/library/debian": a right is for all its tags
	Mirror bool   // Host is not the registry of Image but a mirror of it
	// Refused are the credentials that were tried before and are of no use.
	Refused []Credential
	// Anew says that what was answered before did not help, so that no cache may
	// answer, unless it was filled a moment ago.
	Anew bool
	// Beyond, if set, is when the credential that is in use now ends: one that
	// ends later is wanted, if there is any.
	Beyond time.Time
}

// A challenge is how a host asks for authorization.
type challenge struct {
	scheme  auth.AuthenticationScheme // BasicAuth or BearerAuth
	options auth.TokenOptions         // of BearerAuth, without user and secret
}

// challengeOf is the best of the challenges of an answer that we can meet.
func challengeOf(ctx context.Context, host string, header http.Header) (challenge, error) {
	err := fmt.Errorf("%w: no challenge that we know", ErrDenied)
	for _, c := range auth.ParseAuthHeader(header) {
		switch c.Scheme {
		case auth.BasicAuth:
			return challenge{scheme: auth.BasicAuth}, nil
		case auth.BearerAuth:
			var o auth.TokenOptions
			if o, err = auth.GenerateTokenOptions(ctx, host, "", "", c); err == nil {
				return challenge{auth.BearerAuth, o}, nil
			}
			err = fmt.Errorf("%w: %w", ErrDenied, err)
		}
	}
	return challenge{}, err
}

// general is what of a challenge holds for all repositories of a host.
func (c challenge) general() *challenge {
	c.options.Scopes = nil
	return &c
}

// meets reports whether a credential is of any use.
func (c challenge) meets(cred Credential) bool {
	if c.scheme == auth.BasicAuth && cred.Bearer == "" {
		return cred.User != "" && cred.Secret != ""
	}
	return !cred.IsZero()
}

// A login is one credential, or none, and the tokens that were got with it.
type login struct {
	access    *access
	challenge challenge
	cred      Credential
	begun     time.Time

	accepted atomic.Int64 // unix nanoseconds: when a request last came through with it, or with an older token of cred
	renewing atomic.Bool  // somebody sees to its successor
	pause    atomic.Int64 // unix nanoseconds before which it is not tried again to renew it

	// Guarded by the slot of access: when nothing else helped either, and what was
	// tried then.
	exhausted time.Time
	tried     []Credential

	mu     sync.Mutex
	tokens map[string]*token // by scopes
}

// maxTokens bounds the tokens of a login. Most have one; blobs mounted from
// other repositories by a push need more.
const maxTokens = 64

// A token is one answer of a token server, perhaps still to come.
type token struct {
	done  chan struct{} // closed when the rest is set
	value string
	from  time.Time
	ends  time.Time // zero: not known
	err   error
}

// renewable reports whether a request with it may succeed when one with it was
// refused: a token may have gone stale.
func (l *login) renewable() bool {
	return l.challenge.scheme == auth.BearerAuth && l.cred.Bearer == ""
}

// rank says how much a refusal of l tells: nothing but that a login is wanted, or
// what anybody may not do, or what is wrong with a credential.
func (l *login) rank() int {
	switch {
	case l == nil:
		return 0
	case l.cred.IsZero():
		return 1
	}
	return 2
}

// authorization is the value of the header, for scopes. A token may have to be
// fetched: that is shared, and outlives this caller.
func (l *login) authorization(ctx context.Context, scopes []string) (value string, err error) {
	switch {
	case l.cred.Bearer != "":
		return "Bearer " + l.cred.Bearer, nil
	case l.challenge.scheme == auth.BasicAuth:
		return "Basic " + basic(l.cred), nil
	}
	t := l.token(scopes)
	select {
	case <-t.done:
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	if t.err != nil {
		return "", t.err
	}
	l.keep(scopes, t)
	return "Bearer " + t.value, nil
}

// basic is a credential as Basic authorization has it.
func basic(c Credential) string {
	return base64.StdEncoding.EncodeToString([]byte(c.User + ":" + c.Secret))
}

// token returns the token for scopes, and begins to fetch it if there is none, or
// one that failed or ended.
func (l *login) token(scopes []string) *token {
	all := slices.Concat(scopes, l.challenge.options.Scopes)
	slices.Sort(all)
	all = slices.Compact(all)
	key := strings.Join(all, " ")
	l.mu.Lock()
	defer l.mu.Unlock()
	if t := l.tokens[key]; t != nil && !t.over(time.Now()) {
		return t
	}
	if l.tokens == nil || len(l.tokens) >= maxTokens {
		l.tokens = make(map[string]*token)
	}
	t := &token{done: make(chan struct{}), from: time.Now()}
	l.tokens[key] = t
	reg := l.access.reg
	reg.wg.Go(func() {
		ctx, cancel := context.WithTimeout(reg.base, reg.opt.Timeouts.Header)
		defer cancel()
		defer close(t.done)
		var lasts time.Duration
		t.value, lasts, t.err = l.fetch(ctx, all)
		if lasts > 0 {
			t.ends = t.from.Add(lasts)
		}
	})
	return t
}

// over reports whether t cannot be used any more, or never could. One that is
// still to come can. Its last moments are left to the time that a request takes.
func (t *token) over(now time.Time) bool {
	select {
	case <-t.done:
	default:
		return false
	}
	return t.err != nil || !t.ends.IsZero() && now.After(t.ends.Add(-min(5*time.Second, t.ends.Sub(t.from)/10)))
}

// maxLasts bounds how long a token server may say that its token is good.
const maxLasts = 10 * 365 * 24 * time.Hour

// fetch asks the token server, as containerd does (core/remotes/docker/authorizer.go,
// doBearerAuth): OAuth's POST first where there is a credential, and GET where that
// is not known.
func (l *login) fetch(ctx context.Context, scopes []string) (value string, lasts time.Duration, err error) {
	a := l.access
	o := l.challenge.options
	o.Scopes, o.Username, o.Secret = scopes, l.cred.User, l.cred.Secret
	client, header := a.tokenClient()
	seconds := func(n int) time.Duration {
		return time.Duration(min(max(n, 0), int(maxLasts/time.Second))) * time.Second
	}
	if o.Secret != "" {
		got, err := auth.FetchTokenWithOAuth(ctx, client, header, "containerd-client", o)
		if err == nil {
			return got.AccessToken, seconds(got.ExpiresInSeconds), nil
		}
		se, ok := errors.AsType[remoteserrors.ErrUnexpectedStatus](err)
		if !ok {
			return "", 0, err
		}
		switch se.StatusCode {
		case http.StatusNotFound, http.StatusUnauthorized, http.StatusBadRequest:
		case http.StatusMethodNotAllowed:
			if o.Username == "" {
				return "", 0, err
			}
		default:
			return "", 0, err
		}
	}
	got, err := auth.FetchToken(ctx, client, header, o)
	if err != nil {
		return "", 0, err
	}
	return got.Token, seconds(got.ExpiresInSeconds), nil
}

// keep sees to it that what is in use is replaced before it ends: in the last
// quarter of its time the first request has it renewed, and does not wait for
// that. What nobody uses is left to end.
func (l *login) keep(scopes []string, t *token) {
	now := time.Now()
	due := l.near(now) || t != nil && near(now, t.from, t.ends)
	if !due || now.UnixNano() < l.pause.Load() || !l.renewing.CompareAndSwap(false, true) {
		return
	}
	l.access.reg.wg.Go(func() {
		defer l.renewing.Store(false)
		if err := l.access.renew(l, scopes); err != nil {
			l.pause.Store(time.Now().Add(renewPause).UnixNano())
			l.access.reg.log.Debug("authorization not renewed ahead of its end", "host", l.access.host.Host, "err", err)
		}
	})
}

// renewPause is how long the renewal of what still works is left alone after a failure.
const renewPause = 10 * time.Second

// near reports whether the credential itself is in the last quarter of its time.
func (l *login) near(now time.Time) bool { return near(now, l.begun, l.cred.Ends) }

func near(now, from, ends time.Time) bool {
	return !ends.IsZero() && now.After(ends.Add(-ends.Sub(from)/4))
}

// ended reports whether the credential is known to be worthless.
func (l *login) ended(now time.Time) bool {
	return !l.cred.Ends.IsZero() && !now.Before(l.cred.Ends)
}
