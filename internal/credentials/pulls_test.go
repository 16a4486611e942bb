package credentials

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/snapfs/snapfs/layers/registry"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func TestAuth(t *testing.T) {
	for name, c := range map[string]struct {
		auth Auth
		want registry.Credential
		host string
		err  error
	}{
		"user":                {Auth{Username: "u", Password: "p"}, registry.Credential{User: "u", Secret: "p"}, "", nil},
		"auth":                {Auth{Auth: b64("u:p:q\x00\x00")}, registry.Credential{User: "u", Secret: "p:q"}, "", nil},
		"identity token":      {Auth{IdentityToken: "i"}, registry.Credential{Secret: "i"}, "", nil},
		"registry token":      {Auth{RegistryToken: "r"}, registry.Credential{Bearer: "r"}, "", nil},
		"user before all":     {Auth{Username: "u", Password: "p", Auth: b64("x:y"), IdentityToken: "i"}, registry.Credential{User: "u", Secret: "p"}, "", nil},
		"server":              {Auth{Username: "u", Password: "p", ServerAddress: "https://r.example:5000/v2/"}, registry.Credential{User: "u", Secret: "p"}, "r.example:5000", nil},
		"server, no scheme":   {Auth{Username: "u", Password: "p", ServerAddress: "r.example"}, registry.Credential{User: "u", Secret: "p"}, "r.example", nil},
		"nothing":             {Auth{}, registry.Credential{}, "", errNoAuth},
		"only a server":       {Auth{ServerAddress: "r.example"}, registry.Credential{}, "", errNoAuth},
		"user, no password":   {Auth{Username: "u"}, registry.Credential{}, "", errNoAuth},
		"not base64":          {Auth{Auth: "!"}, registry.Credential{}, "", errBadAuth},
		"base64 of no colon":  {Auth{Auth: b64("up")}, registry.Credential{}, "", errBadAuth},
		"base64 of no user":   {Auth{Auth: b64(":p")}, registry.Credential{}, "", errBadAuth},
		"base64, no password": {Auth{Auth: b64("u:")}, registry.Credential{}, "", errNoAuth},
	} {
		cred, host, err := c.auth.credential()
		if !cred.Same(c.want) || host != c.host || !errors.Is(err, c.err) {
			t.Errorf("%s: %q %q %q for %q, %v", name, cred.User, cred.Secret, cred.Bearer, host, err)
		}
	}
	huge := Auth{Username: "u", Password: strings.Repeat("x", maxAuth)}
	if _, _, err := huge.credential(); err == nil || len(err.Error()) > 200 {
		t.Errorf("huge: %v", err)
	}
}

// ask returns the secrets for an image, one word each.
func (p *Pulls) ask(image, host string) string {
	list, err := p.Credentials(context.Background(), registry.Ask{Image: image, Host: host})
	var all []string
	for _, c := range list {
		all = append(all, c.Secret+c.Bearer)
	}
	if err != nil {
		return err.Error()
	}
	return strings.Join(all, " ")
}

func pull(t *testing.T, p *Pulls, image, password, id string, err error) {
	t.Helper()
	var auth *Auth
	if password != "" {
		auth = &Auth{Username: "u", Password: password}
	}
	q, berr := p.Begin(image, auth)
	if berr != nil {
		t.Fatal(berr)
	}
	q.Done(id, err)
}

func TestPulls(t *testing.T) {
	p := new(Pulls)
	expect := func(what, image, want string) {
		t.Helper()
		if got := p.ask(image, "r.example"); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	refused := errors.New("denied")
	pull(t, p, "r.example/a:1", "one", "sha256:1", nil)
	expect("a pull", "r.example/a", "one")
	expect("another repository", "r.example/b", "")
	pull(t, p, "r.example/a:2", "two", "sha256:2", nil)
	expect("the newest first", "r.example/a", "two one")
	pull(t, p, "r.example/a:2", "wrong", "", refused)
	expect("a pull that failed", "r.example/a", "two one")
	pull(t, p, "r.example/a:2", "one", "", refused)
	expect("one that failed with what is proven", "r.example/a", "one two")
	pull(t, p, "r.example/a:3", "", "sha256:3", nil)
	expect("one without credentials", "r.example/a", "one two")
	pull(t, p, "debian", "hub", "sha256:4", nil)
	if got := p.ask("docker.io/library/debian", "registry-1.docker.io"); got != "hub" {
		t.Errorf("a short name: %q", got)
	}
	p.Remove("sha256:9")
	p.Remove("r.example/a:9")
	p.Remove("r.example/a:1")
	expect("one of two images is removed", "r.example/a", "one two")
	p.Remove("sha256:2")
	expect("both are removed, one by its ID", "r.example/a", "")
	p.Remove("docker.io/library/debian:latest")
	if p.Count() != 0 {
		t.Errorf("%d repositories are remembered of no image", p.Count())
	}

	// While a pull is under way its secret serves, and one that fails takes
	// nothing from the other.
	a, err := p.Begin("r.example/a:1", &Auth{Username: "u", Password: "one"})
	if err != nil {
		t.Fatal(err)
	}
	expect("under way", "r.example/a", "one")
	b, err := p.Begin("r.example/a:2", &Auth{Username: "u", Password: "one"})
	if err != nil {
		t.Fatal(err)
	}
	a.Done("", refused)
	expect("one of two under way failed", "r.example/a", "one")
	b.Done("", refused)
	expect("both failed", "r.example/a", "")

	for _, bad := range []string{"", "oci:/etc", "x y", "r.example/UPPER", strings.Repeat("x", maxImage+1)} {
		if q, err := p.Begin(bad, &Auth{Username: "u", Password: "p"}); err == nil || q != nil {
			t.Errorf("Begin(%.20q) = %v, %v", bad, q, err)
		}
	}
	if q, err := p.Begin("r.example/a", &Auth{Auth: b64("secret-1")}); !errors.Is(err, errBadAuth) || strings.Contains(err.Error(), "secret-1") || q != nil {
		t.Errorf("Begin = %v, %v", q, err)
	}
}

// TestPullsHost: a secret that says which server it is for goes to no other.
func TestPullsHost(t *testing.T) {
	p := new(Pulls)
	for image, server := range map[string]string{"r.example/a": "https://r.example", "debian": "https://index.docker.io/v1/", "r.example/b": ""} {
		q, err := p.Begin(image, &Auth{Username: "u", Password: "p", ServerAddress: server})
		if err != nil {
			t.Fatal(err)
		}
		q.Done("sha256:1", nil)
	}
	for _, c := range []struct{ image, host, want string }{
		{"r.example/a", "r.example", "p"},
		{"r.example/a", "mirror.example", ""},
		{"r.example/b", "mirror.example", "p"},
		{"docker.io/library/debian", "registry-1.docker.io", "p"},
		{"docker.io/library/debian", "mirror.example", ""},
	} {
		if got := p.ask(c.image, c.host); got != c.want {
			t.Errorf("%s at %s: %q, want %q", c.image, c.host, got, c.want)
		}
	}
}

// TestPullsBounds: what was pulled longest ago is forgotten.
func TestPullsBounds(t *testing.T) {
	p := new(Pulls)
	for i := range maxRepos + 10 {
		pull(t, p, fmt.Sprintf("r.example/a%d", i), "shared", fmt.Sprintf("sha256:%d", i), nil)
	}
	if p.Count() != maxRepos || p.ask("r.example/a9", "r.example") != "" || p.ask("r.example/a10", "r.example") == "" {
		t.Errorf("%d repositories, want %d, without the oldest", p.Count(), maxRepos)
	}
	if n := len(p.encode()); n > 256<<10 {
		t.Errorf("a shared secret makes a state of %d bytes", n)
	}
	p = new(Pulls)
	for i := range 2 * maxSecrets {
		pull(t, p, "r.example/a", fmt.Sprint(i), "sha256:1", nil)
	}
	if got := p.ask("r.example/a", ""); len(strings.Fields(got)) != maxSecrets || !strings.HasPrefix(got, "15 14 ") {
		t.Errorf("secrets of one repository: %q", got)
	}
	for i := range 2 * maxImages {
		pull(t, p, fmt.Sprintf("r.example/a:%d", i), "0", "sha256:1", nil)
	}
	if n := len(p.repos["r.example/a"].Images); n > maxImages {
		t.Errorf("%d images of one repository", n)
	}
	for i := range 100 {
		pull(t, p, fmt.Sprintf("r.example/b%d", i), fmt.Sprint(i)+strings.Repeat("x", maxAuth/2), "sha256:1", nil)
	}
	if n := len(p.encode()); n > 2*maxKept {
		t.Errorf("%d bytes of large secrets", n)
	}
}

// TestPullsKept: what a process remembered is there in the next one.
func TestPullsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept []byte
		keeps := 0
		p := &Pulls{Keep: func(state []byte) error { kept, keeps = bytes.Clone(state), keeps+1; return nil }}
		pull(t, p, "r.example/a:1", "one", "sha256:1", nil)
		before := keeps
		pull(t, p, "r.example/a:1", "one", "sha256:1", nil)
		if keeps != before {
			t.Error("a pull that brings nothing new is kept again")
		}
		pull(t, p, "r.example/a:2", "two", "sha256:2", nil)
		q, err := p.Begin("1.dkr.ecr.eu.amazonaws.com/x", &Auth{Username: "AWS", Password: "ecr"})
		if err != nil {
			t.Fatal(err)
		}
		q.Done("sha256:3", nil)
		next := new(Pulls)
		if err := next.Restore(kept); err != nil {
			t.Fatal(err)
		}
		if a, b := string(next.encode()), string(p.encode()); a != b {
			t.Errorf("restored %s, want %s", a, b)
		}
		list, err := next.Credentials(t.Context(), registry.Ask{Image: "1.dkr.ecr.eu.amazonaws.com/x"})
		if err != nil || len(list) != 1 || !list[0].Ends.Equal(time.Now().Add(12*time.Hour)) {
			t.Errorf("ECR's password: %v until %v, want 12 hours from now", list, list[0].Ends)
		}
		next.Remove("sha256:1")
		next.Remove("sha256:2")
		if next.ask("r.example/a", "") != "" {
			t.Error("what is restored is not forgotten")
		}
		for _, bad := range []string{"{", `{"Repos":{"a":{"Secrets":[0]}}}`, `{"Repos":{"a":{"Secrets":[-1]}}}`} {
			if err := next.Restore([]byte(bad)); !errors.Is(err, errState) {
				t.Errorf("Restore(%s) = %v", bad, err)
			}
		}
		if err := next.Restore(nil); err != nil || next.Count() != 1 {
			t.Errorf("Restore of nothing = %v", err)
		}
	})
}

// TestPullsAtOnce: the last state that is kept is the newest.
func TestPullsAtOnce(t *testing.T) {
	var kept []byte
	p := &Pulls{Keep: func(state []byte) error { kept = state; return nil }}
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() { pull(t, p, fmt.Sprintf("r.example/a%d", i%10), fmt.Sprint(i), "sha256:1", nil) })
	}
	all.Wait()
	if !bytes.Equal(kept, p.encode()) {
		t.Error("what is kept is not what is remembered")
	}
}

// TestPullsFit: however large a state is in JSON, what is kept fits and is what is remembered.
func TestPullsFit(t *testing.T) {
	var kept []byte
	p := &Pulls{Keep: func(state []byte) error { kept = bytes.Clone(state); return nil }}
	big := strings.Repeat("\x01", maxAuth/2)
	n := maxKept / len(big)
	for i := range n {
		pull(t, p, fmt.Sprintf("r.example/a%d", i), fmt.Sprint(i)+big, "sha256:1", nil)
		if len(kept) > MaxState {
			t.Fatalf("%d bytes are kept, at most %d", len(kept), MaxState)
		}
	}
	next := new(Pulls)
	if err := next.Restore(kept); err != nil {
		t.Fatal(err)
	}
	if next.Count() != p.Count() || p.Count() < n/3 || p.Count() >= n {
		t.Errorf("%d repositories are kept, %d remembered, of %d", next.Count(), p.Count(), n)
	}
	if last := fmt.Sprintf("r.example/a%d", n-1); p.ask(last, "r.example") == "" {
		t.Error("the newest is forgotten")
	}
}

// TestPullsNotKept: what Keep refuses to replace does not stay.
func TestPullsNotKept(t *testing.T) {
	kept, broken := []byte(nil), false
	p := &Pulls{Keep: func(state []byte) error {
		if broken && len(state) > 0 {
			return errors.New("no")
		}
		kept = bytes.Clone(state)
		return nil
	}}
	pull(t, p, "r.example/a:1", "one", "sha256:1", nil)
	if len(kept) == 0 {
		t.Fatal("nothing is kept")
	}
	broken = true
	p.Remove("sha256:1")
	if len(kept) != 0 {
		t.Errorf("a secret that was removed is kept: %s", kept)
	}
}

func FuzzAuth(f *testing.F) {
	f.Add("u", "p", b64("u:p"), "https://x", "i", "r")
	f.Add("", "", b64("secret"), "", "", "")
	f.Fuzz(func(t *testing.T, user, password, auth, server, identity, token string) {
		a := &Auth{user, password, auth, server, identity, token}
		cred, host, err := a.credential()
		if (err == nil) == cred.IsZero() {
			t.Errorf("credential() of %+v = %v, %v", a, cred, err)
		}
		if err == nil && (strings.Contains(host, "/") || cred.User == "" && cred.Secret != "" && cred.Secret != identity) {
			t.Errorf("credential() of %+v: %q %q for %q", a, cred.User, cred.Secret, host)
		}
	})
}

func FuzzRestore(f *testing.F) {
	p := new(Pulls)
	p.add(&Pull{p: p, repo: "r.example/a"}, &secret{Credential: registry.Credential{User: "u", Secret: "p"}})
	f.Add(p.encode())
	f.Add([]byte(`{"Secrets":[{"Secret":"x"}],"Repos":{"a":{"Secrets":[0,0],"Used":18446744073709551615}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		p := new(Pulls)
		if p.Restore(raw) != nil {
			return
		}
		again := new(Pulls)
		if err := again.Restore(p.encode()); err != nil || again.Count() != p.Count() || p.Count() > maxRepos {
			t.Errorf("%d repositories, then %d, %v", p.Count(), again.Count(), err)
		}
	})
}
