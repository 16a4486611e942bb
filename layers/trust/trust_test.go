package trust

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/index"
)

func generate(tb testing.TB) PrivateKey {
	tb.Helper()
	k, err := Generate()
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func annotations() index.Annotations {
	return index.Annotations{
		Version: index.Version, Root: layers.SumOf([]byte("root")), Prefix: 1000,
		Index:  index.Blob{Digest: digest.FromString("index"), Size: 5000},
		Bundle: index.Blob{Digest: digest.FromString("bundle"), Size: 777},
	}
}

var (
	manifest = digest.FromString("manifest")
	created  = time.Date(2026, 2, 3, 4, 5, 6, 7, time.FixedZone("", 3600))
)

func sign(tb testing.TB, s Statement, keys ...PrivateKey) string {
	tb.Helper()
	env, err := Sign(s, keys...)
	if err != nil {
		tb.Fatal(err)
	}
	return env
}

func TestSignAndVerify(t *testing.T) {
	a, b, c := generate(t), generate(t), generate(t)
	for name, st := range map[string]Statement{
		"with bundle": StatementOf(manifest, annotations(), created),
		"without":     StatementOf(manifest, index.Annotations{Prefix: 1, Index: index.Blob{Digest: manifest, Size: 1}}, created),
	} {
		got, id, err := Verify(sign(t, st, a, b), []PublicKey{c.Public(), b.Public()})
		if err != nil || id != b.Public().ID() {
			t.Errorf("%s: Verify = key %s, %v, want %s", name, id, err, b.Public().ID())
		}
		if diff := cmp.Diff(st, got); diff != "" {
			t.Errorf("%s: Verify (-want +got):\n%s", name, diff)
		}
	}
	if st := StatementOf(manifest, annotations(), created); st.Check(manifest, annotations()) != nil {
		t.Errorf("Check of its own annotations = %v", st.Check(manifest, annotations()))
	}
}

// edit changes the JSON of an envelope.
func edit(tb testing.TB, env string, change func(*envelope)) string {
	tb.Helper()
	var e envelope
	if err := json.Unmarshal([]byte(env), &e); err != nil {
		tb.Fatal(err)
	}
	change(&e)
	p, err := json.Marshal(e)
	if err != nil {
		tb.Fatal(err)
	}
	return string(p)
}

func TestVerifyTellsApart(t *testing.T) {
	mine, other := generate(t), generate(t)
	env := sign(t, StatementOf(manifest, annotations(), created), mine)
	changed := StatementOf(manifest, annotations(), created)
	changed.Root[0] ^= 1
	payload, err := changed.encode()
	if err != nil {
		t.Fatal(err)
	}
	// resign makes an envelope whose signature is right, of any payload.
	resign := func(payload string) string {
		return edit(t, env, func(e *envelope) {
			e.Payload = base64.StdEncoding.EncodeToString([]byte(payload))
			e.Signatures[0].Sig = base64.StdEncoding.EncodeToString(signBytes(mine, payload))
		})
	}
	for _, tc := range []struct {
		name, env string
		want      error
	}{
		{"nothing", "", ErrUnsigned},
		{"no signatures", edit(t, env, func(e *envelope) { e.Signatures = nil }), ErrUnsigned},
		{"another's", sign(t, changed, other), ErrUnknownKey},
		{"another's in my name", edit(t, sign(t, changed, other), func(e *envelope) { e.Signatures[0].KeyID = mine.Public().ID() }), ErrBadSignature},
		{"changed payload", edit(t, env, func(e *envelope) { e.Payload = base64.StdEncoding.EncodeToString(payload) }), ErrBadSignature},
		{"cut signature", edit(t, env, func(e *envelope) { e.Signatures[0].Sig = e.Signatures[0].Sig[:40] }), ErrBadSignature},
		{"other type", edit(t, env, func(e *envelope) { e.PayloadType = "text/plain" }), ErrMalformed},
		{"not JSON", env[:len(env)-1], ErrMalformed},
		{"more than JSON", env + "{}", ErrMalformed},
		{"payload", edit(t, env, func(e *envelope) { e.Payload = "*" }), ErrMalformed},
		{"signature", edit(t, env, func(e *envelope) { e.Signatures[0].Sig = "*" }), ErrMalformed},
		{"huge", env + strings.Repeat(" ", index.MaxEnvelope), layers.ErrTooLarge},
		{"many", edit(t, env, func(e *envelope) { e.Signatures = make([]signature, maxSignatures+1) }), layers.ErrTooLarge},
		{"statement", resign(`{`), ErrMalformed},
		{"empty statement", resign(`{}`), ErrMalformed},
		{"bad root", resign(strings.Replace(string(payload), changed.Root.String(), "sha256:0", 1)), ErrMalformed},
		{"bad time", resign(strings.Replace(string(payload), "2026-02-03T", "2026-13-03T", 1)), ErrMalformed},
		{"prefix beyond the blob", resign(strings.Replace(string(payload), `"prefix":1000`, `"prefix":5001`, 1)), ErrMalformed},
		{"negative bundle", resign(strings.Replace(string(payload), `"size":777`, `"size":-7`, 1)), ErrMalformed},
	} {
		st, id, err := Verify(tc.env, []PublicKey{mine.Public()})
		if !errors.Is(err, tc.want) || id != "" || st != (Statement{}) {
			t.Errorf("%s: Verify = %v, %q, %v, want %v", tc.name, st, id, err, tc.want)
		}
	}
	if _, _, err := Verify(env, nil); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("Verify with no keys = %v, want ErrUnknownKey", err)
	}
}

func signBytes(k PrivateKey, payload string) []byte {
	return ed25519.Sign(k.key, pae(PayloadType, []byte(payload)))
}

// Key IDs are hints: a signature without one, or with a wrong one, is still one.
func TestVerifyKeyIDIsAHint(t *testing.T) {
	k := generate(t)
	env := sign(t, StatementOf(manifest, annotations(), created), generate(t), k)
	for _, id := range []string{"", "0000", k.Public().ID()} {
		_, got, err := Verify(edit(t, env, func(e *envelope) { e.Signatures[1].KeyID = id }), []PublicKey{k.Public()})
		if err != nil || got != k.Public().ID() {
			t.Errorf("Verify with key ID %q = %q, %v", id, got, err)
		}
	}
	url := edit(t, env, func(e *envelope) {
		for _, s := range []*string{&e.Payload, &e.Signatures[0].Sig, &e.Signatures[1].Sig} {
			*s = strings.NewReplacer("+", "-", "/", "_").Replace(*s)
		}
	})
	if _, _, err := Verify(url, []PublicKey{k.Public()}); err != nil {
		t.Errorf("Verify of the URL alphabet = %v", err)
	}
	if ids, err := KeyIDs(env); err != nil || len(ids) != 2 || ids[1] != k.Public().ID() {
		t.Errorf("KeyIDs = %q, %v", ids, err)
	}
}

func TestCheck(t *testing.T) {
	st := StatementOf(manifest, annotations(), created)
	if err := st.Check(digest.FromString("other"), annotations()); !errors.Is(err, index.ErrOtherImage) {
		t.Errorf("Check for another manifest = %v, want ErrOtherImage", err)
	}
	for name, change := range map[string]func(*index.Annotations){
		"root":   func(a *index.Annotations) { a.Root[3]++ },
		"prefix": func(a *index.Annotations) { a.Prefix++ },
		"index":  func(a *index.Annotations) { a.Index.Digest = manifest },
		"size":   func(a *index.Annotations) { a.Index.Size++ },
		"bundle": func(a *index.Annotations) { a.Bundle = index.Blob{} },
	} {
		a := annotations()
		change(&a)
		if err := st.Check(manifest, a); !errors.Is(err, ErrOtherBlobs) {
			t.Errorf("Check with another %s = %v, want ErrOtherBlobs", name, err)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	if _, err := Sign(StatementOf(manifest, annotations(), created)); !errors.Is(err, ErrUnsigned) {
		t.Errorf("Sign without keys = %v, want ErrUnsigned", err)
	}
	if _, err := Sign(StatementOf(manifest, annotations(), created), PrivateKey{}); !errors.Is(err, ErrBadKey) {
		t.Errorf("Sign with no key = %v, want ErrBadKey", err)
	}
	if _, err := Sign(Statement{}, generate(t)); !errors.Is(err, ErrMalformed) {
		t.Errorf("Sign of nothing = %v, want ErrMalformed", err)
	}
}

// The examples of the specification (protocol.md).
func TestPAE(t *testing.T) {
	if got := string(pae("http://example.com/HelloWorld", []byte("hello world"))); got != "DSSEv1 29 http://example.com/HelloWorld 11 hello world" {
		t.Errorf("pae = %q", got)
	}
	if got := string(pae("", nil)); got != "DSSEv1 0  0 " {
		t.Errorf("pae of nothing = %q", got)
	}
}

func TestKeyFiles(t *testing.T) {
	dir := t.TempDir()
	k, k2 := generate(t), generate(t)
	priv, pub := filepath.Join(dir, "key"), filepath.Join(dir, "key.pub")
	if err := errors.Join(SavePrivate(priv, k), SavePublic(pub, k.Public())); err != nil {
		t.Fatal(err)
	}
	if err := SavePrivate(priv, k2); !errors.Is(err, fs.ErrExist) {
		t.Errorf("SavePrivate over a file = %v, want ErrExist", err)
	}
	if got, err := LoadPrivate(priv); err != nil || !got.key.Equal(k.key) {
		t.Errorf("LoadPrivate = %v", err)
	}
	both := filepath.Join(dir, "both")
	p1, _ := k.Public().PEM()
	p2, _ := k2.Public().PEM()
	if err := os.WriteFile(both, append(p1, p2...), 0o644); err != nil {
		t.Fatal(err)
	}
	keys, err := LoadPublic(pub, both)
	if err != nil || len(keys) != 2 || keys[0].ID() != k.Public().ID() || keys[1].ID() != k2.Public().ID() {
		t.Errorf("LoadPublic = %v, %v, want two keys", keys, err)
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o610} {
		if err := os.Chmod(priv, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadPrivate(priv); !errors.Is(err, ErrExposed) {
			t.Errorf("LoadPrivate of mode %o = %v, want ErrExposed", mode, err)
		}
	}
	if _, err := LoadPrivate(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("LoadPrivate of nothing = %v", err)
	}
	if _, err := LoadPublic(dir); !errors.Is(err, ErrBadKey) {
		t.Errorf("LoadPublic of a directory = %v, want ErrBadKey", err)
	}
}

// The key of RFC 8410, section 10.1, and what openssl makes of it.
func TestKnownKey(t *testing.T) {
	keys, err := ParsePublic([]byte("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(keys[0].key); got != "19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1" {
		t.Errorf("key = %s", got)
	}
	if keys[0].ID() != knownID {
		t.Errorf("ID = %s, want %s", keys[0].ID(), knownID)
	}
	priv, err := ParsePrivate([]byte("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n"))
	if err != nil || priv.Public().ID() != knownID {
		t.Errorf("ParsePrivate = %v, want the key of the public one", err)
	}
}

func TestBadKeys(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	priv, err := x509.MarshalPKCS8PrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := x509.MarshalPKIXPublicKey(&ec.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	good, _ := generate(t).PEM()
	block := func(kind string, p []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: p}) }
	for name, p := range map[string][]byte{
		"nothing": nil, "text": []byte("hello"), "another algorithm": block("PRIVATE KEY", priv), "garbage": block("PRIVATE KEY", []byte("x")),
		"another type": block("EC PRIVATE KEY", priv), "two": append(bytes.Clone(good), good...),
	} {
		if _, err := ParsePrivate(p); !errors.Is(err, ErrBadKey) {
			t.Errorf("ParsePrivate of %s = %v, want ErrBadKey", name, err)
		}
	}
	for name, p := range map[string][]byte{
		"nothing": nil, "another algorithm": block("PUBLIC KEY", pub), "garbage": block("PUBLIC KEY", []byte("x")), "a private key": good,
	} {
		if _, err := ParsePublic(p); !errors.Is(err, ErrBadKey) {
			t.Errorf("ParsePublic of %s = %v, want ErrBadKey", name, err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	k := generate(f)
	keys := []PublicKey{k.Public()}
	env := sign(f, StatementOf(manifest, annotations(), created), k)
	f.Add(env)
	f.Add(`{"payloadType":"` + PayloadType + `","payload":"e30=","signatures":[{"keyid":"","sig":""}]}`)
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		st, _, err := Verify(s, keys)
		// Nobody can guess a signature: whatever passes says what was signed.
		if want := StatementOf(manifest, annotations(), created); err == nil && st != want {
			t.Errorf("Verify(%q) = %+v", s, st)
		}
	})
}

func FuzzStatement(f *testing.F) {
	st := StatementOf(manifest, annotations(), created)
	p, err := st.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p)
	f.Fuzz(func(t *testing.T, p []byte) {
		s, err := decode(p)
		if err != nil {
			return
		}
		q, err := s.encode()
		if err != nil {
			t.Fatalf("encode of what decode gave: %v", err)
		}
		if again, err := decode(q); err != nil || !again.Created.Equal(s.Created.Truncate(time.Second)) || again.Index != s.Index || again.Manifest != s.Manifest {
			t.Errorf("decode(encode(%+v)) = %+v, %v", s, again, err)
		}
	})
}

// knownID is what openssl pkey -pubin -outform DER | sha256sum says of it.
const knownID = "a1e9156054e04fac"
