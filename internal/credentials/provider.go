package credentials

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/snapfs/snapfs/layers/registry"
)

// Bounds of what a plugin may answer.
const (
	maxResponse = 1 << 20 // bytes
	maxAuths    = 1024
	maxCached   = 4096 // answers, of all plugins
	longest     = 10 * 365 * 24 * time.Hour
)

// A Program is what ProviderOptions.Exec runs.
type Program struct {
	Path  string // absolute
	Args  []string
	Env   []string // NAME=VALUE, beside what all programs get
	Stdin []byte
	Most  int // bytes of its output; more are an error
}

// ProviderOptions of OpenProviders.
type ProviderOptions struct {
	// Config is a CredentialProviderConfig (YAML or JSON), or a folder of them;
	// Bin the folder of the plugins: what kubelet gets with
	// --image-credential-provider-config and --image-credential-provider-bin-dir.
	Config, Bin string
	// Exec runs a plugin and returns its standard output. An error is also an
	// exit status other than 0. It has no part of the output in it.
	Exec    func(ctx context.Context, p Program) ([]byte, error)
	Timeout time.Duration // of one run; default 20 s: a read that waits for it may fail after 30
	Log     *slog.Logger  // nil discards
}

// Providers are kubelet's credential-provider plugins as a source. A plugin runs at
// most once at a time for one registry; its answers are kept as long as it says.
type Providers struct {
	opt  ProviderOptions
	list []*provider

	base   context.Context // ends at Close; parent of runs, which outlive who asked first
	cancel context.CancelFunc
	runs   sync.WaitGroup
}

// provider is one plugin.
type provider struct {
	name       string
	images     []pattern
	lasts      time.Duration // of an answer that does not say
	apiVersion string
	args, env  []string
	tokens     bool // it wants a service account's token, which only kubelet has

	mu     sync.Mutex
	cached map[string]*answer   // by what cacheKey has returned
	failed map[string]time.Time // by image: when the plugin last did not work
	flight map[string]*run      // by registry
}

// An answer is what a plugin has said, for an image, a registry or everything.
type answer struct {
	auths []authEntry
	at    time.Time
	ends  time.Time // not after at: it is not kept
	empty bool      // no credentials: believed only briefly
}

type authEntry struct {
	key            string
	images         pattern
	user, password string
}

// A run is one execution of a plugin.
type run struct {
	image string
	done  chan struct{} // closed when ans is set
	ans   *answer       // nil: the plugin did not work
}

// OpenProviders reads the configuration; nothing is run. Close ends what runs.
func OpenProviders(opt ProviderOptions) (*Providers, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Timeout <= 0 {
		opt.Timeout = 20 * time.Second
	}
	if !filepath.IsAbs(opt.Bin) {
		return nil, fmt.Errorf("directory of credential providers %q: want an absolute path", opt.Bin)
	}
	list, err := readProviders(opt.Config, opt.Log)
	if err != nil {
		return nil, err
	}
	p := &Providers{opt: opt}
	for _, one := range list {
		if one.tokens {
			opt.Log.Info("credential provider is left to kubelet: it wants tokens of service accounts", "provider", one.name)
			continue
		}
		if _, err := os.Stat(filepath.Join(opt.Bin, one.name)); err != nil {
			opt.Log.Warn("credential provider is not there", "provider", one.name, "err", err)
		}
		one.cached, one.failed, one.flight = make(map[string]*answer), make(map[string]time.Time), make(map[string]*run)
		p.list = append(p.list, one)
	}
	p.base, p.cancel = context.WithCancel(context.Background())
	return p, nil
}

// Close kills plugins that run and waits for their end.
func (p *Providers) Close() error {
	p.cancel()
	p.runs.Wait()
	return nil
}

var _ Source = (*Providers)(nil)

// Credentials asks each plugin that is for the image, in the order of the
// configuration. One that does not work is logged and passed over, as kubelet does.
func (p *Providers) Credentials(ctx context.Context, ask registry.Ask) (list []registry.Credential, err error) {
	for _, one := range p.list {
		if !slices.ContainsFunc(one.images, func(g pattern) bool { return g.matches(ask.Image) }) {
			continue
		}
		a, err := p.answer(ctx, one, ask)
		if err != nil {
			return list, err
		}
		list = append(list, a.credentials(one.name, ask.Image)...)
	}
	return list, nil
}

// credentials are the entries of an answer that are for an image, the most
// specific first.
func (a *answer) credentials(from, image string) (list []registry.Credential) {
	for _, e := range a.auths {
		if e.images.matches(image) {
			c := registry.Credential{User: e.user, Secret: e.password, Source: "provider " + from}
			if a.ends.After(a.at) {
				c.Ends = a.ends
			}
			list = append(list, c)
		}
	}
	return list
}

// answer returns what the plugin has said, or runs it. The error is only ctx's.
func (p *Providers) answer(ctx context.Context, one *provider, ask registry.Ask) (*answer, error) {
	host, _, _ := strings.Cut(ask.Image, "/")
	for {
		now := time.Now()
		one.mu.Lock()
		old := one.find(ask.Image)
		ago := now.Sub(one.failed[ask.Image])
		switch {
		case old != nil && old.serves(ask, now):
			one.mu.Unlock()
			return old, nil
		case ago < moment || ago < brief && !ask.Anew:
			one.mu.Unlock()
			return old.last(now), nil
		}
		r := one.flight[host]
		if r == nil {
			r = &run{image: ask.Image, done: make(chan struct{})}
			one.flight[host] = r
			p.runs.Go(func() { p.run(one, r, host) })
		}
		one.mu.Unlock()
		select {
		case <-r.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		switch {
		case r.image != ask.Image: // it may have been good for us, too
			ask.Anew, ask.Beyond = false, time.Time{}
		case r.ans == nil:
			return old.last(time.Now()), nil
		default:
			return r.ans, nil
		}
	}
}

// last is what an answer is worth when there is no newer one.
func (a *answer) last(now time.Time) *answer {
	if a == nil || !now.Before(a.ends) {
		return &answer{}
	}
	return a
}

// find returns what is kept for an image, as kubelet does: for itself, for its
// registry, for everything. mu is held.
func (one *provider) find(image string) *answer {
	for _, kind := range []string{"Image", "Registry", "Global"} {
		if a := one.cached[cacheKey(kind, image)]; a != nil {
			return a
		}
	}
	return nil
}

// cacheKey is what an answer is kept under.
func cacheKey(kind, image string) string {
	switch kind {
	case "Image":
		return "image " + image
	case "Registry":
		host, _, _ := strings.Cut(image, "/")
		return "registry " + host
	}
	return "global"
}

// serves reports whether an answer is still one.
func (a *answer) serves(ask registry.Ask, now time.Time) bool {
	age := now.Sub(a.at)
	switch {
	case age < moment:
		return now.Before(a.ends) || a.empty
	case a.empty:
		return age < brief && !ask.Anew
	}
	return now.Before(a.ends) && a.ends.After(ask.Beyond) && !ask.Anew
}

// run runs the plugin for an image and keeps the answer.
func (p *Providers) run(one *provider, r *run, host string) {
	defer close(r.done)
	key, ans, err := p.exec(one, r.image)
	if err != nil {
		p.opt.Log.Warn("credential provider does not work", "provider", one.name, "image", r.image, "err", err)
	}
	one.mu.Lock()
	defer one.mu.Unlock()
	delete(one.flight, host)
	if err != nil {
		if len(one.failed) >= maxCached {
			clear(one.failed)
		}
		one.failed[r.image] = time.Now()
		return
	}
	r.ans = ans
	delete(one.failed, r.image)
	if ans.empty || ans.ends.After(ans.at) {
		one.keep(key, ans)
	}
}

// keep remembers an answer. mu is held.
func (one *provider) keep(key string, a *answer) {
	if len(one.cached) >= maxCached {
		now := time.Now()
		for k, old := range one.cached {
			if !now.Before(old.ends) && now.Sub(old.at) > brief {
				delete(one.cached, k)
			}
		}
		if len(one.cached) >= maxCached {
			clear(one.cached)
		}
	}
	one.cached[key] = a
}

// exec runs the plugin.
func (p *Providers) exec(one *provider, image string) (key string, a *answer, err error) {
	ctx, cancel := context.WithTimeoutCause(p.base, p.opt.Timeout, fmt.Errorf("no answer in %v", p.opt.Timeout))
	defer cancel()
	request, err := json.Marshal(map[string]string{"kind": "CredentialProviderRequest", "apiVersion": one.apiVersion, "image": image})
	if err != nil {
		return "", nil, err
	}
	out, err := p.opt.Exec(ctx, Program{Path: filepath.Join(p.opt.Bin, one.name), Args: one.args, Env: one.env, Stdin: request, Most: maxResponse})
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return "", nil, err
	}
	kind, a, err := parseResponse(out, one.apiVersion, one.lasts)
	if err != nil {
		return "", nil, err
	}
	return cacheKey(kind, image), a, nil
}

var errResponse = errors.New("not a CredentialProviderResponse")

// parseResponse reads what a plugin has written. Errors do not quote it.
func parseResponse(raw []byte, apiVersion string, lasts time.Duration) (kind string, a *answer, err error) {
	if len(raw) > maxResponse {
		return "", nil, errTooMuch("bytes of an answer", len(raw), maxResponse)
	}
	var r struct {
		Kind          string  `json:"kind"`
		APIVersion    string  `json:"apiVersion"`
		CacheKeyType  string  `json:"cacheKeyType"`
		CacheDuration *string `json:"cacheDuration"`
		Auth          map[string]struct {
			Username string `json:"username"`
			Password string `json:"password"`
		} `json:"auth"`
	}
	if json.Unmarshal(raw, &r) != nil { // its error may quote
		return "", nil, fmt.Errorf("%w: not its JSON", errResponse)
	}
	switch {
	case r.Kind != "CredentialProviderResponse":
		return "", nil, fmt.Errorf("%w: of another kind", errResponse)
	case r.APIVersion != apiVersion:
		return "", nil, fmt.Errorf("%w of %s", errResponse, apiVersion)
	case r.CacheKeyType != "Image" && r.CacheKeyType != "Registry" && r.CacheKeyType != "Global":
		return "", nil, fmt.Errorf("%w: cacheKeyType is none of Image, Registry, Global", errResponse)
	case len(r.Auth) > maxAuths:
		return "", nil, errTooMuch("entries in auth", len(r.Auth), maxAuths)
	}
	if r.CacheDuration != nil {
		if lasts, err = time.ParseDuration(*r.CacheDuration); err != nil || lasts < 0 {
			return "", nil, fmt.Errorf("%w: cacheDuration", errResponse)
		}
	}
	a = &answer{at: time.Now()}
	a.ends = a.at.Add(min(lasts, longest))
	for key, e := range r.Auth {
		if e.Password == "" {
			continue
		}
		images, err := parseKey(key)
		if err != nil {
			return "", nil, fmt.Errorf("%w: a key of auth is not of an image", errResponse)
		}
		a.auths = append(a.auths, authEntry{key, images, e.Username, e.Password})
	}
	a.empty = len(a.auths) == 0
	// Kubelet takes the keys in reverse order, so that paths come before their host.
	slices.SortFunc(a.auths, func(x, y authEntry) int { return strings.Compare(y.key, x.key) })
	return r.CacheKeyType, a, nil
}
