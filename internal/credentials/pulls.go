package credentials

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/snapfs/snapfs/layers/registry"
)

// Bounds of what is remembered. What was pulled longest ago goes first.
const (
	maxRepos   = 1024
	maxSecrets = 8       // of one repository
	maxImages  = 64      // of one repository
	maxImage   = 1 << 10 // bytes of an image's name or ID
	maxKept    = 1 << 20 // bytes of all secrets and names
)

// MaxState is how many bytes Keep is given at most.
const MaxState = 4 << 20

// Pulls remembers the credentials that came with pulls of images through the CRI,
// by repository, until the last image of it is removed. They are in memory alone;
// Keep hands them to somebody who lives longer than this process.
type Pulls struct {
	// Keep, if not nil, is given all that is remembered after each change. If it
	// fails it is given nothing: what it was given before may have been removed.
	Keep func(state []byte) error
	Log  *slog.Logger // nil discards

	saving sync.Mutex // held over calls of Keep, so that the newest state is the last

	mu    sync.Mutex
	repos map[string]*pulled // by repository
	clock uint64
}

// pulled is one repository.
type pulled struct {
	Secrets []*held           // the one of the newest pull first
	Images  map[string]string // references that were pulled, and their IDs as far as they are known
	Used    uint64            // clock of the last pull
}

// held is a secret with what is known of it in one repository.
type held struct {
	*secret
	proven bool // a pull with it has succeeded
	under  int  // pulls with it that are under way
}

// A secret may be shared by many repositories.
type secret struct {
	registry.Credential
	Host string // for which it is; "": any that the image is pulled from
}

func (s *secret) same(t *secret) bool { return s.Same(t.Credential) && s.Host == t.Host }
func (s *secret) size() int           { return len(s.User) + len(s.Secret) + len(s.Bearer) + len(s.Host) }

var _ Source = (*Pulls)(nil)

// Credentials returns those of an image's repository, of the newest pull first.
func (p *Pulls) Credentials(_ context.Context, ask registry.Ask) (list []registry.Credential, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.repos[ask.Image]
	if r == nil {
		return nil, nil
	}
	for _, s := range r.Secrets {
		if s.Host == "" || sameHost(s.Host, ask.Host) {
			list = append(list, s.Credential)
		}
	}
	return list, nil
}

// A Pull is one pull that is under way.
type Pull struct {
	p     *Pulls
	repo  string
	image string
	with  *held
}

// Begin takes note of the credentials of a pull, if it has any: they serve from now
// on. The caller says how it ended with Done. A pull whose image or credentials
// cannot be understood is remembered as nothing; its error has no secret in it.
func (p *Pulls) Begin(image string, auth *Auth) (*Pull, error) {
	if len(image) > maxImage {
		return nil, errTooMuch("bytes of an image's name", len(image), maxImage)
	}
	ref, err := registry.ParseRef(image)
	if err != nil || !ref.IsRemote() {
		return nil, errors.Join(err, fmt.Errorf("image %q", image))
	}
	if auth == nil {
		return nil, nil
	}
	cred, host, err := auth.credential()
	if errors.Is(err, errNoAuth) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	cred.Ends = ends(cred.User, time.Now())
	pull := &Pull{p: p, repo: ref.Name(), image: ref.String()}
	if p.add(pull, &secret{cred, host}) {
		p.save()
	}
	return pull, nil
}

// add makes s the first secret of the repository.
func (p *Pulls) add(pull *Pull, s *secret) (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.repos == nil {
		p.repos = make(map[string]*pulled)
	}
	r := p.repos[pull.repo]
	if r == nil {
		r = &pulled{Images: make(map[string]string)}
		p.repos[pull.repo] = r
	}
	p.clock++
	r.Used = p.clock
	i := slices.IndexFunc(r.Secrets, func(h *held) bool { return h.same(s) })
	if i >= 0 {
		pull.with = r.Secrets[i]
		r.Secrets = slices.Delete(r.Secrets, i, i+1)
	} else {
		pull.with = &held{secret: p.shared(s)}
	}
	pull.with.under++
	r.Secrets = append([]*held{pull.with}, r.Secrets[:min(len(r.Secrets), maxSecrets-1)]...)
	p.shrink()
	return i != 0
}

// shared is s, or what another repository has that is the same.
func (p *Pulls) shared(s *secret) *secret {
	for _, r := range p.repos {
		for _, h := range r.Secrets {
			if h.same(s) {
				return h.secret
			}
		}
	}
	return s
}

// shrink forgets what is beyond the bounds. mu is held.
func (p *Pulls) shrink() {
	for len(p.repos) > maxRepos || p.size() > maxKept {
		p.forgetOldest()
	}
}

// forgetOldest forgets the repository of the pull longest ago. mu is held.
func (p *Pulls) forgetOldest() {
	oldest := ""
	for name, r := range p.repos {
		if oldest == "" || r.Used < p.repos[oldest].Used {
			oldest = name
		}
	}
	delete(p.repos, oldest)
}

// size is the bytes of all secrets and names. mu is held.
func (p *Pulls) size() (n int) {
	seen := make(map[*secret]bool)
	for name, r := range p.repos {
		n += len(name)
		for ref, id := range r.Images {
			n += len(ref) + len(id)
		}
		for _, h := range r.Secrets {
			if !seen[h.secret] {
				seen[h.secret] = true
				n += h.size()
			}
		}
	}
	return n
}

// Done says how the pull ended: with the image's ID, or an error. A secret with
// which no pull has succeeded is then forgotten. A nil Pull is nothing.
func (q *Pull) Done(id string, err error) {
	if q == nil {
		return
	}
	if q.p.done(q, id, err) {
		q.p.save()
	}
}

func (p *Pulls) done(q *Pull, id string, err error) (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	q.with.under--
	r := p.repos[q.repo]
	if r == nil {
		return false
	}
	if err != nil {
		if q.with.proven || q.with.under > 0 {
			return false
		}
		r.Secrets = slices.DeleteFunc(r.Secrets, func(h *held) bool { return h == q.with })
		if len(r.Secrets) == 0 {
			delete(p.repos, q.repo)
		}
		return true
	}
	q.with.proven = true
	if len(id) > maxImage {
		id = ""
	}
	if was, ok := r.Images[q.image]; ok && was == id {
		return false
	}
	if len(r.Images) >= maxImages {
		for name := range r.Images { // any of them: the others still name the repository
			delete(r.Images, name)
			break
		}
	}
	r.Images[q.image] = id
	p.shrink()
	return true
}

// Remove forgets an image, which is named by a reference or by its ID. With the
// last image of a repository its secrets are forgotten.
func (p *Pulls) Remove(image string) {
	if len(image) > maxImage {
		return
	}
	name := ""
	if ref, err := registry.ParseRef(image); err == nil && ref.IsRemote() {
		name = ref.String()
	}
	id := func(s string) string { return strings.TrimPrefix(s, "sha256:") }
	p.mu.Lock()
	changed := false
	for repo, r := range p.repos {
		n := len(r.Images)
		maps.DeleteFunc(r.Images, func(ref, its string) bool {
			return ref == name || its != "" && id(its) == id(image)
		})
		if len(r.Images) == n {
			continue
		}
		changed = true
		if len(r.Images) == 0 {
			delete(p.repos, repo)
		}
	}
	p.mu.Unlock()
	if changed {
		p.save()
	}
}

// Count returns how many repositories are remembered.
func (p *Pulls) Count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.repos)
}

// state is what Keep gets, as JSON: each secret once.
type state struct {
	Secrets []keptSecret
	Repos   map[string]keptRepo
}

type keptSecret struct {
	User, Secret, Bearer, Host string    `json:",omitempty"`
	Ends                       time.Time `json:",omitzero"`
}

type keptRepo struct {
	Secrets []int
	Images  map[string]string
	Used    uint64
}

// save gives Keep what is remembered now.
func (p *Pulls) save() {
	if p.Keep == nil {
		return
	}
	p.saving.Lock()
	defer p.saving.Unlock()
	err := p.Keep(p.encode())
	if err != nil {
		err = errors.Join(err, p.Keep(nil))
	}
	if err != nil && p.Log != nil {
		p.Log.Warn("credentials of pulls would not outlive this process", "err", err)
	}
}

// encode returns the state. What does not fit into one is forgotten: JSON has
// up to six bytes for one of a secret.
func (p *Pulls) encode() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		raw := p.marshal()
		if len(raw) <= MaxState {
			return raw
		}
		for range 1 + len(p.repos)/16 { // to encode costs more than to pull again
			p.forgetOldest()
		}
	}
}

// marshal is encode without a bound. mu is held.
func (p *Pulls) marshal() []byte {
	st := state{Repos: make(map[string]keptRepo)}
	index := make(map[*secret]int)
	for _, name := range slices.Sorted(maps.Keys(p.repos)) {
		r := p.repos[name]
		k := keptRepo{Images: r.Images, Used: r.Used}
		for _, h := range r.Secrets {
			i, ok := index[h.secret]
			if !ok {
				i = len(st.Secrets)
				index[h.secret] = i
				st.Secrets = append(st.Secrets, keptSecret{h.User, h.Secret, h.Bearer, h.Host, h.Ends})
			}
			k.Secrets = append(k.Secrets, i)
		}
		st.Repos[name] = k
	}
	raw, err := json.Marshal(st)
	if err != nil { // there are only strings and numbers in it
		panic("credentials: state cannot be encoded: " + err.Error())
	}
	return raw
}

// errState says that a state is not one that Keep was given.
var errState = errors.New("not a state of credentials")

// Restore brings back what Keep was given last, by a process before this one.
func (p *Pulls) Restore(raw []byte) error {
	if len(raw) == 0 {
		return nil
	}
	var st state
	if json.Unmarshal(raw, &st) != nil { // its error may quote
		return errState
	}
	secrets := make([]*secret, len(st.Secrets))
	for i, k := range st.Secrets {
		secrets[i] = &secret{registry.Credential{User: k.User, Secret: k.Secret, Bearer: k.Bearer, Ends: k.Ends, Source: "CRI"}, k.Host}
	}
	repos := make(map[string]*pulled)
	var clock uint64
	for name, k := range st.Repos {
		r := &pulled{Images: k.Images, Used: k.Used}
		if r.Images == nil {
			r.Images = make(map[string]string)
		}
		for _, i := range k.Secrets {
			if i < 0 || i >= len(secrets) || len(r.Secrets) >= maxSecrets {
				return errState
			}
			r.Secrets = append(r.Secrets, &held{secret: secrets[i], proven: len(r.Images) > 0})
		}
		repos[name], clock = r, max(clock, k.Used)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.repos, p.clock = repos, clock
	p.shrink()
	return nil
}
