package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A gate is a registry with one blob, and the server of its tokens, in a bubble.
type gate struct {
	network
	basic bool          // it wants passwords, not tokens
	code  int           // of what is refused; 0: 401
	lasts time.Duration // of a token; 0: it does not say, and they are good for ever
	open  bool          // anybody may read
	echo  bool          // refusals repeat what was sent
	never string        // what nobody may have: part of a path

	mu     sync.Mutex
	good   []string             // "user:secret", "token:refresh token", "bearer:registry token"
	tokens map[string]time.Time // when they end
	issued int
	asked  []string // by what one has logged in
}

var gateBlob = bytes.Repeat([]byte("snapfs "), 1000)

// start serves the gate as example.com until the test ends.
func (g *gate) start(t *testing.T, opt Options) *remoteBlobReader {
	t.Helper()
	g.tokens = make(map[string]time.Time)
	s := g.serve("example.com:80", false, g)
	tokens := g.serve("auth.example.com:80", false, g) // a host of its own, and so connections
	opt.HostDirs, opt.PlainHTTP = []string{t.TempDir()}, []string{"example.com", "auth.example.com"}
	r := New(opt)
	r.dial = g.dial
	t.Cleanup(func() {
		r.Close()
		s.Close()
		tokens.Close()
		g.wires.Wait()
	})
	desc := ocispec.Descriptor{Digest: someDigest, Size: int64(len(gateBlob))}
	b, err := r.Blob(mustRef(t, "example.com/a/b:v1"), desc)
	if err != nil {
		t.Fatal(err)
	}
	return &remoteBlobReader{t, r, func(ctx context.Context) error {
		p := make([]byte, 100)
		n, err := b.ReadAt(ctx, p, 700)
		if err == nil && !bytes.Equal(p[:n], gateBlob[700:800]) {
			return errors.New("other bytes")
		}
		return err
	}}
}

type remoteBlobReader struct {
	*testing.T
	reg *Registry
	try func(ctx context.Context) error
}

// read reads and returns how many round trips it took.
func (r *remoteBlobReader) read() float64 {
	r.Helper()
	start := time.Now()
	if err := r.try(r.Context()); err != nil {
		r.Fatalf("ReadAt = %v", err)
	}
	return trips(start)
}

func (g *gate) allow(good ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.good = good
}

func (g *gate) allowed(who string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked = append(g.asked, who)
	return g.open && who == "" || slices.Contains(g.good, who)
}

func (g *gate) refuse(w http.ResponseWriter, r *http.Request, had bool) {
	code := http.StatusUnauthorized
	if had && g.code != 0 {
		code = g.code
	}
	if code == http.StatusUnauthorized {
		c := `Bearer realm="http://auth.example.com/token",service="x",scope="repository:a/b:pull"`
		if g.basic {
			c = `Basic realm="x"`
		}
		w.Header().Set("WWW-Authenticate", c)
	}
	w.WriteHeader(code)
	if g.echo {
		_, password, _ := r.BasicAuth()
		json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": "DENIED", "message": "for " + password + r.Header.Get("Authorization") + r.Form.Get("password")}}})
	}
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/token" {
		g.token(w, r)
		return
	}
	value := r.Header.Get("Authorization")
	user, password, isBasic := r.BasicAuth()
	token, isBearer := strings.CutPrefix(value, "Bearer ")
	ok := false
	switch {
	case g.basic && isBasic:
		ok = g.allowed(user + ":" + password)
	case !g.basic && isBearer:
		g.mu.Lock()
		ends, known := g.tokens[token]
		g.mu.Unlock()
		ok = known && (ends.IsZero() || time.Now().Before(ends)) || !known && g.allowed("bearer:"+token)
	}
	if !ok || g.never != "" && strings.Contains(r.URL.Path, g.never) {
		g.refuse(w, r, value != "")
		return
	}
	w.Write(begin(w, r, gateBlob))
}

// token gives a token to whom it knows.
func (g *gate) token(w http.ResponseWriter, r *http.Request) {
	r.ParseForm()
	user, secret, _ := r.BasicAuth()
	switch r.Form.Get("grant_type") {
	case "password":
		user, secret = r.Form.Get("username"), r.Form.Get("password")
	case "refresh_token":
		user, secret = "token", r.Form.Get("refresh_token")
	}
	who := strings.TrimSuffix(user+":"+secret, ":")
	if !g.allowed(who) {
		g.refuse(w, r, false)
		return
	}
	g.mu.Lock()
	g.issued++
	token := fmt.Sprintf("t%d", g.issued)
	g.tokens[token] = time.Time{}
	if g.lasts > 0 {
		g.tokens[token] = time.Now().Add(g.lasts)
	}
	g.mu.Unlock()
	json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token, "expires_in": int(g.lasts / time.Second)})
}

// count returns how many tokens were given.
func (g *gate) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.issued
}

// came returns by what one has logged in so far.
func (g *gate) came() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.asked)
}

// expire makes all tokens stale.
func (g *gate) expire() {
	g.mu.Lock()
	defer g.mu.Unlock()
	clear(g.tokens)
}

// A purse is a source of credentials that tells what it was asked.
type purse struct {
	mu   sync.Mutex
	have []Credential
	asks []Ask
	err  error
}

func (p *purse) ask(_ context.Context, q Ask) (Credential, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asks = append(p.asks, q)
	for _, c := range p.have {
		if !slices.ContainsFunc(q.Refused, c.Same) {
			return c, p.err
		}
	}
	return Credential{}, p.err
}

func (p *purse) set(c ...Credential) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.have = c
}

// drain returns the questions since the last call.
func (p *purse) drain() []Ask {
	p.mu.Lock()
	defer p.mu.Unlock()
	asks := p.asks
	p.asks = nil
	return asks
}

func password(user, secret string) Credential { return Credential{User: user, Secret: secret} }

// TestLoginOrder: credentials are tried one after the other, whatever way they
// are refused, and at last none at all.
func TestLoginOrder(t *testing.T) {
	a, b := password("a", "first"), password("b", "second")
	for _, c := range []struct {
		name string
		gate *gate
		good string
		have []Credential
		want error
		with string // by whom one has come in
		asks int
	}{
		{"the first", &gate{}, "a:first", []Credential{a, b}, nil, "a:first", 1},
		{"the second", &gate{}, "b:second", []Credential{a, b}, nil, "b:second", 2},
		{"the second, 403", &gate{code: 403}, "b:second", []Credential{a, b}, nil, "b:second", 2},
		{"the second, passwords", &gate{basic: true}, "b:second", []Credential{a, b}, nil, "b:second", 2},
		{"the second, passwords, 403", &gate{basic: true, code: 403}, "b:second", []Credential{a, b}, nil, "b:second", 2},
		{"none of them", &gate{}, "c:third", []Credential{a, b}, ErrDenied, "", 3},
		{"none of them, passwords", &gate{basic: true}, "c:third", []Credential{a, b}, ErrDenied, "b:second", 3},
		{"nobody's", &gate{open: true}, "", []Credential{a, b}, nil, "", 3},
		{"no credentials", &gate{open: true}, "", nil, nil, "", 1},
		{"no credentials, passwords", &gate{basic: true}, "a:first", nil, ErrDenied, "", 1},
		{"identity token", &gate{}, "token:id", []Credential{a, {Secret: "id"}}, nil, "token:id", 2},
		{"identity token where passwords are wanted", &gate{basic: true}, "b:second", []Credential{{Secret: "id"}, b}, nil, "b:second", 2},
		{"registry token", &gate{}, "bearer:r1", []Credential{a, {Bearer: "r1"}}, nil, "bearer:r1", 2},
		{"registry token, 403", &gate{code: 403}, "b:second", []Credential{{Bearer: "r1"}, b}, nil, "b:second", 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := c.gate
				g.allow(c.good)
				p := &purse{have: c.have}
				r := g.start(t, Options{Credentials: p.ask})
				if err := r.try(t.Context()); !errors.Is(err, c.want) {
					t.Fatalf("ReadAt = %v, want %v", err, c.want)
				}
				if with := g.came(); (len(with) > 0 || c.with != "") && with[len(with)-1] != c.with {
					t.Errorf("logged in as %q, want %q last", with, c.with)
				}
				asks := p.drain()
				if len(asks) != c.asks {
					t.Errorf("%d questions, want %d: %v", len(asks), c.asks, asks)
				}
				for i, q := range asks {
					if q.Host != "example.com" || q.Image != "example.com/a/b" || q.Mirror || len(q.Refused) > i || i > 0 && len(q.Refused) == 0 {
						t.Errorf("question %d: %+v", i, q)
					}
				}
				if c.want == nil {
					if n := r.read(); n != 1 || len(p.drain()) != 0 {
						t.Errorf("the second read took %v round trips, want 1, and no question", n)
					}
				}
			})
		})
	}
}

// TestLoginAnew: what was accepted before and is refused now is asked for anew,
// once for all who wait.
func TestLoginAnew(t *testing.T) {
	for _, basic := range []bool{false, true} {
		for _, code := range []int{401, 403} {
			t.Run(fmt.Sprintf("basic %v, %d", basic, code), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					g := &gate{basic: basic, code: code}
					g.allow("a:first")
					p := &purse{have: []Credential{password("a", "first")}}
					r := g.start(t, Options{Credentials: p.ask})
					r.read()
					p.drain()
					g.allow("a:second")
					g.expire()
					p.set(password("a", "first"), password("a", "second"))
					var all sync.WaitGroup
					for range 20 {
						all.Go(func() {
							if err := r.try(t.Context()); err != nil {
								t.Errorf("ReadAt = %v", err)
							}
						})
					}
					all.Wait()
					asks := p.drain()
					want := 2 // the stale token's credential once more, then another
					if basic {
						want = 1
					}
					if len(asks) != want {
						t.Errorf("%d questions, want %d: %+v", len(asks), want, asks)
					}
					if last := asks[len(asks)-1]; !last.Anew || len(last.Refused) != 1 {
						t.Errorf("last question: %+v, want one for what is new", last)
					}
				})
			})
		}
	}
}

// TestStaleToken: a token that goes stale costs no credential.
func TestStaleToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{}
		g.allow("a:first")
		p := &purse{have: []Credential{password("a", "first"), password("b", "second")}}
		r := g.start(t, Options{Credentials: p.ask})
		for range 3 {
			r.read()
			g.expire()
		}
		for _, q := range p.drain() {
			if q.Anew || len(q.Refused) > 0 {
				t.Errorf("question %+v though only tokens went stale", q)
			}
		}
		if g.count() != 3 {
			t.Errorf("%d tokens, want 3", g.count())
		}
	})
}

// TestRenewToken: a token is renewed before it ends while it is in use, and nobody
// waits for that; what is not in use is left alone.
func TestRenewToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{lasts: 100 * time.Second}
		g.allow("a:first")
		stats := new(Stats)
		r := g.start(t, Options{Credentials: (&purse{have: []Credential{password("a", "first")}}).ask, Stats: stats})
		r.read()
		begun := time.Now()
		for time.Since(begun) < 1000*time.Second {
			time.Sleep(10 * time.Second)
			if n := r.read(); n != 1 {
				t.Errorf("after %v a read took %v round trips, want 1", time.Since(begun), n)
			}
		}
		time.Sleep(5 * time.Second) // for the last one to come
		if g.count() < 10 || g.count() > 14 || stats.Renewals.Load() != int64(g.count()-1) || stats.Refreshes.Load() != 0 {
			t.Errorf("%d tokens, %d renewals, %d refreshes in 1000 s of tokens that last 100 s", g.count(), stats.Renewals.Load(), stats.Refreshes.Load())
		}
		before := g.count()
		time.Sleep(time.Hour)
		synctest.Wait()
		if g.count() != before {
			t.Errorf("%d tokens while nobody read", g.count()-before)
		}
		if n := r.read(); n > 4 || g.count() != before+1 {
			t.Errorf("the read after an hour took %v round trips, and %d tokens, want one token and no refusal", n, g.count()-before)
		}
		if stats.Refreshes.Load() != 0 {
			t.Errorf("%d tokens were refused that were known to have ended", stats.Refreshes.Load())
		}
	})
}

// TestRenewFails: while a token server is out of order a token serves to its end,
// and it is not asked at every read.
func TestRenewFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{lasts: 1000 * time.Second}
		g.allow("a:first")
		r := g.start(t, Options{Credentials: (&purse{have: []Credential{password("a", "first")}}).ask})
		r.read()
		g.allow()
		time.Sleep(800 * time.Second)
		before := len(g.came())
		for range 50 {
			time.Sleep(time.Second)
			r.read()
		}
		if n := len(g.came()) - before; n == 0 || n > 22 { // twice, POST and GET, each ten seconds
			t.Errorf("the token server was asked %d times in 100 s", n)
		}
		g.allow("a:first")
		for range 20 {
			time.Sleep(time.Second)
			r.read()
		}
		if g.count() != 2 {
			t.Errorf("%d tokens, want a second when the server is well again", g.count())
		}
	})
}

// TestRenewCredential: a password with a known end is replaced before it.
func TestRenewCredential(t *testing.T) {
	for _, basic := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			g := &gate{basic: basic, lasts: 3 * time.Hour}
			p := new(purse)
			var round atomic.Int64
			source := func(ctx context.Context, q Ask) (Credential, error) { // as ECR: 12 hours
				if q.Beyond.After(time.Now()) {
					n := round.Add(1)
					g.allow(fmt.Sprintf("AWS:%d", n), fmt.Sprintf("AWS:%d", n-1))
					p.set(Credential{User: "AWS", Secret: fmt.Sprint(n), Ends: time.Now().Add(12 * time.Hour)})
				}
				return p.ask(ctx, q)
			}
			g.allow("AWS:0")
			p.set(Credential{User: "AWS", Secret: "0", Ends: time.Now().Add(12 * time.Hour)})
			stats := new(Stats)
			r := g.start(t, Options{Credentials: source, Stats: stats})
			r.read()
			begun := time.Now()
			for time.Since(begun) < 48*time.Hour {
				time.Sleep(20 * time.Minute)
				if n := r.read(); n > 2 { // 1 to connect again: nothing was read for longer than connections are kept
					t.Fatalf("after %v a read took %v round trips", time.Since(begun), n)
				}
			}
			if round.Load() < 4 || round.Load() > 6 {
				t.Errorf("%d passwords in 48 hours, want one each 9", round.Load())
			}
			if stats.Refreshes.Load() != 0 {
				t.Errorf("%d refusals", stats.Refreshes.Load())
			}
		})
	}
}

// TestEndedCredential: what has ended while nobody read is not even tried if
// there is something better, and else it is.
func TestEndedCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{basic: true}
		g.allow("a:first", "a:second")
		p := &purse{have: []Credential{{User: "a", Secret: "first", Ends: time.Now().Add(time.Hour)}}}
		r := g.start(t, Options{Credentials: p.ask})
		r.read()
		time.Sleep(2 * time.Hour)
		r.read() // nothing else is there
		r.read()
		asks := p.drain()
		if len(asks) != 2 || asks[1].Beyond.IsZero() {
			t.Errorf("questions %+v, want a second for something that lasts longer", asks)
		}
		if last := g.came(); last[len(last)-1] != "a:first" {
			t.Errorf("logged in as %q", last)
		}
	})
}

// TestNoSecretInMessages: not even when a server repeats it.
func TestNoSecretInMessages(t *testing.T) {
	for _, basic := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			g := &gate{basic: basic, echo: true}
			secrets := []string{"pass-word-0", "idtoken-0", "registry-token-0", base64.StdEncoding.EncodeToString([]byte("me:pass-word-0"))}
			var log bytes.Buffer
			p := &purse{have: []Credential{password("me", secrets[0]), {Secret: secrets[1]}, {Bearer: secrets[2]}}}
			r := g.start(t, Options{Credentials: p.ask, Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
			err := r.try(t.Context())
			if !errors.Is(err, ErrDenied) {
				t.Fatalf("ReadAt = %v, want ErrDenied", err)
			}
			r.reg.Close()
			all := fmt.Sprintf("%v %+v %#v %s", err, p.have, p.have[0], log.String())
			for _, s := range secrets {
				if strings.Contains(strings.ToLower(all), strings.ToLower(s)) {
					t.Errorf("%q is in %q", s, all)
				}
			}
		})
	}
}

// TestDeniedNotKept: what was denied is asked for again by the next request.
func TestDeniedNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{}
		p := new(purse)
		r := g.start(t, Options{Credentials: p.ask})
		if err := r.try(t.Context()); !errors.Is(err, ErrDenied) {
			t.Fatalf("ReadAt = %v", err)
		}
		if asks := p.drain(); len(asks) != 2 || !asks[1].Anew {
			t.Errorf("questions %+v, want one, and one for what is new", asks)
		}
		p.set(password("a", "first"))
		g.allow("a:first")
		r.read()
		p.mu.Lock()
		p.err = errors.New("the helper does not work")
		p.mu.Unlock()
		g.expire()
		if err := r.try(t.Context()); !errors.Is(err, ErrDenied) || !strings.Contains(fmt.Sprint(err), "helper") {
			t.Errorf("ReadAt = %v, want ErrDenied by the helper", err)
		}
	})
}

// TestForbiddenPart: what nobody may have costs the others nothing, neither while
// they come through nor later.
func TestForbiddenPart(t *testing.T) {
	for _, basic := range []bool{false, true} {
		for _, code := range []int{401, 403} {
			synctest.Test(t, func(t *testing.T) {
				g := &gate{basic: basic, code: code, never: "/manifests/"}
				g.allow("a:first")
				p := &purse{have: []Credential{password("a", "first")}}
				r := g.start(t, Options{Credentials: p.ask})
				forbidden := func() {
					t.Helper()
					if _, err := r.reg.Resolve(t.Context(), mustRef(t, "example.com/a/b:v1"), ""); !errors.Is(err, ErrDenied) {
						t.Errorf("Resolve = %v, want ErrDenied", err)
					}
				}
				r.read()
				p.drain()
				for range 3 {
					var all sync.WaitGroup
					all.Go(forbidden)
					for range 10 {
						all.Go(func() {
							if err := r.try(t.Context()); err != nil {
								t.Errorf("basic %v, %d: ReadAt = %v", basic, code, err)
							}
						})
					}
					all.Wait()
				}
				for _, q := range p.drain() {
					if q.Anew && !basic {
						t.Errorf("%d: question %+v while others came through", code, q)
					}
				}
				time.Sleep(time.Minute)
				forbidden()
				p.drain()
				tokens := g.count()
				if r.read(); len(p.drain()) != 0 || g.count() != tokens {
					t.Errorf("basic %v, %d: a read after another was denied asks for credentials, or for a token", basic, code)
				}
			})
		}
	}
}

// TestRevoked: when a credential is worth nothing any more, one of those who are
// refused tries what there is, and sources are asked anew once.
func TestRevoked(t *testing.T) {
	for _, basic := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			g := &gate{basic: basic}
			g.allow("a:first")
			p := &purse{have: []Credential{password("a", "first"), password("b", "second")}}
			r := g.start(t, Options{Credentials: p.ask})
			r.read()
			p.drain()
			time.Sleep(time.Minute)
			g.allow()
			g.expire()
			before := len(g.came())
			storm := func(n int) {
				var all sync.WaitGroup
				for range n {
					all.Go(func() {
						if err := r.try(t.Context()); !errors.Is(err, ErrDenied) {
							t.Errorf("ReadAt = %v, want ErrDenied", err)
						}
					})
				}
				all.Wait()
			}
			storm(20)
			anew := 0
			for _, q := range p.drain() {
				if q.Anew {
					anew++
				}
			}
			if n := len(g.came()) - before; anew > 4 || n > 60 {
				t.Errorf("basic %v: sources were asked anew %d times, and %d logins tried by 20 reads", basic, anew, n)
			}
			// What a pull brings meanwhile is used at once.
			p.set(password("a", "first"), password("b", "second"), password("c", "third"))
			g.allow("c:third")
			r.read()
		})
	}
}

// TestSlowCredentials: a source that is slower than one attempt is waited for by the next.
func TestSlowCredentials(t *testing.T) {
	for _, first := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			g := &gate{}
			g.allow("a:first")
			asks := 0
			r := g.start(t, Options{Credentials: func(ctx context.Context, _ Ask) (Credential, error) {
				if asks++; asks == 1 {
					<-ctx.Done()
					return Credential{}, context.Cause(ctx)
				}
				return password("a", "first"), nil
			}})
			if !first { // as the host has asked in other repositories, so before the request
				r.reg.repo(Ref{Domain: "example.com", Repo: "a/b"})
				c, err := challengeOf(t.Context(), "example.com", http.Header{"Www-Authenticate": {`Bearer realm="http://auth.example.com/token"`}})
				if err != nil {
					t.Fatal(err)
				}
				r.reg.hosts["example.com"][0].challenge.Store(c.general())
			}
			err := r.try(t.Context())
			if first {
				// The first answer, a challenge, used the time of all attempts.
				if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrDenied) {
					t.Errorf("ReadAt = %v, want ErrUnavailable", err)
				}
				err = r.try(t.Context())
			}
			if err != nil || asks != 2 {
				t.Errorf("ReadAt = %v after %d questions", err, asks)
			}
		})
	}
}

// TestMirrorAsks: a mirror is asked for by its own name, for the image.
func TestMirrorAsks(t *testing.T) {
	s := newServer(t)
	s.set(func(w http.ResponseWriter, r *http.Request, n int) bool {
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	dir := hostsToml(t, "hub.example", fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n", s.URL, "http://localhost:1"))
	p := new(purse)
	r := newRegistry(t, Options{Timeouts: quick, HostDirs: []string{dir}, Credentials: p.ask})
	if _, err := r.Resolve(t.Context(), mustRef(t, "hub.example/a/b:v1"), ""); err == nil {
		t.Fatal("Resolve succeeded")
	}
	asks := p.drain()
	if len(asks) == 0 || asks[0].Host != s.host() || asks[0].Image != "hub.example/a/b" || !asks[0].Mirror {
		t.Errorf("questions %+v", asks)
	}
}

var _ http.Handler = (*gate)(nil)

// TestDetail: of a secret that a server repeats nothing is told, also where the
// message is cut off within it.
func TestDetail(t *testing.T) {
	const secret = "Sesame-open"
	for n := range 200 {
		doc := `{"errors":[{"code":"DENIED","message":"` + strings.Repeat("x", n) + secret + `"}]}`
		if got := detail([]byte(doc), "other", secret); strings.Contains(got, "ses") {
			t.Fatalf("after %d bytes: %q", n, got)
		}
		if got := detail([]byte(doc), "other"); got != clip("denied: "+strings.Repeat("x", n)+strings.ToLower(secret)) {
			t.Fatalf("of no secret: %q", got)
		}
	}
}
