// Package trust signs what a published index is, and believes signatures by keys
// that the operator configured.
//
// What is signed is a [Statement]: of which image manifest, with which root,
// which blobs. It travels in an envelope, DSSE 1.0
// (https://github.com/secure-systems-lab/dsse, protocol.md and envelope.md), with
// ed25519 signatures, so that other programs can check it. The envelope is JSON:
//
//	{"payloadType": PayloadType, "payload": base64(statement),
//	 "signatures": [{"keyid": "…", "sig": base64(ed25519(PAE))}]}
//
// Verify tells apart what an operator has to: not signed, signed by a key that is
// not configured, a signature that is wrong. That it is of another image, or of
// other blobs than the annotations say, is [Statement.Check]'s to find.
//
// The library of the DSSE project is not used: its verifier links
// golang.org/x/crypto/ssh for key IDs, into snapctl too, and has one error for
// all that can be wrong.
package trust

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/index"
)

// PayloadType is the type of a Statement in an envelope.
const PayloadType = "application/vnd.snapfs.index.statement+json"

// Limits of an envelope, whose size is at most index.MaxEnvelope.
const maxSignatures = 16

// Sentinels of Verify and Check.
var (
	ErrUnsigned     = errors.New("not signed")
	ErrUnknownKey   = errors.New("signed by no known key")
	ErrBadSignature = errors.New("bad signature")
	// ErrMalformed says that an envelope, or the statement in one that was
	// rightly signed, cannot be read.
	ErrMalformed = errors.New("malformed envelope")
	// ErrOtherBlobs says that the annotations are not what was signed.
	ErrOtherBlobs = errors.New("signed for other blobs")
)

// A Statement is what a signature says: the index of this manifest is that.
type Statement struct {
	Manifest digest.Digest // of the image manifest
	Root     layers.Sum    // of the index's header
	Prefix   int64
	Index    index.Blob
	Bundle   index.Blob // zero if there is none
	Created  time.Time  // to the second
}

// StatementOf is the statement that an index with the annotations a is that of
// the manifest.
func StatementOf(manifest digest.Digest, a index.Annotations, created time.Time) Statement {
	return Statement{manifest, a.Root, a.Prefix, a.Index, a.Bundle, created.UTC().Truncate(time.Second)}
}

// Check returns an error that wraps index.ErrOtherImage if the statement is of
// another manifest, or ErrOtherBlobs if it is not what the annotations say.
func (s *Statement) Check(manifest digest.Digest, a index.Annotations) error {
	if s.Manifest != manifest {
		return fmt.Errorf("%w: signed for manifest %s, want %s", index.ErrOtherImage, s.Manifest, manifest)
	}
	for _, f := range []struct {
		name         string
		signed, said any
	}{
		{"root", s.Root, a.Root}, {"prefix", s.Prefix, a.Prefix},
		{"index", s.Index, a.Index}, {"boot bundle", s.Bundle, a.Bundle},
	} {
		if f.signed != f.said {
			return fmt.Errorf("%w: %s %v, the annotations say %v", ErrOtherBlobs, f.name, f.signed, f.said)
		}
	}
	return nil
}

// Sign returns an envelope with s, signed by each key.
func Sign(s Statement, keys ...PrivateKey) (string, error) {
	if len(keys) == 0 || len(keys) > maxSignatures {
		return "", fmt.Errorf("sign with %d keys: %w", len(keys), ErrUnsigned)
	}
	payload, err := s.encode()
	if err != nil {
		return "", err
	}
	e := envelope{PayloadType: PayloadType, Payload: base64.StdEncoding.EncodeToString(payload)}
	for _, k := range keys {
		if len(k.key) != ed25519.PrivateKeySize {
			return "", fmt.Errorf("%w: a zero PrivateKey", ErrBadKey)
		}
		sig := ed25519.Sign(k.key, pae(PayloadType, payload))
		e.Signatures = append(e.Signatures, signature{KeyID: k.Public().ID(), Sig: base64.StdEncoding.EncodeToString(sig)})
	}
	p, err := json.Marshal(e)
	return string(p), err
}

// Verify returns the statement in an envelope if one of keys signed it, and the ID
// of that key. Otherwise the error wraps ErrUnsigned (also if env is empty),
// ErrUnknownKey, ErrBadSignature or ErrMalformed.
func Verify(env string, keys []PublicKey) (Statement, string, error) {
	if env == "" {
		return Statement{}, "", ErrUnsigned
	}
	e, payload, err := parse(env)
	if err != nil {
		return Statement{}, "", err
	}
	id, err := e.signer(payload, keys)
	if err != nil {
		return Statement{}, "", err
	}
	s, err := decode(payload)
	if err != nil {
		return Statement{}, "", fmt.Errorf("statement signed by %s: %w", id, err)
	}
	return s, id, nil
}

// KeyIDs returns what the signatures of an envelope say whose they are. It is a
// hint for messages, nothing vouches for it.
func KeyIDs(env string) ([]string, error) {
	e, _, err := parse(env)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, s := range e.Signatures {
		ids = append(ids, s.KeyID)
	}
	return ids, nil
}

type envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     string      `json:"payload"`
	Signatures  []signature `json:"signatures"`
}

type signature struct {
	KeyID string `json:"keyid"`
	Sig   string `json:"sig"`
}

// parse reads an envelope and decodes its payload, and believes neither.
func parse(env string) (*envelope, []byte, error) {
	if len(env) > index.MaxEnvelope {
		return nil, nil, fmt.Errorf("envelope: %w: %d bytes", layers.ErrTooLarge, len(env))
	}
	e := new(envelope)
	if err := json.Unmarshal([]byte(env), e); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	switch {
	case e.PayloadType != PayloadType:
		return nil, nil, fmt.Errorf("%w: payload of type %.80q", ErrMalformed, e.PayloadType)
	case len(e.Signatures) == 0:
		return nil, nil, fmt.Errorf("%w: envelope without signatures", ErrUnsigned)
	case len(e.Signatures) > maxSignatures:
		return nil, nil, fmt.Errorf("envelope: %w: %d signatures", layers.ErrTooLarge, len(e.Signatures))
	}
	payload, err := unbase64(e.Payload)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: payload: %w", ErrMalformed, err)
	}
	return e, payload, nil
}

// signer returns the ID of the first of keys that signed the payload. The key IDs
// in the envelope only say which error it is if none did: they are hints
// (protocol.md, "keyid").
func (e *envelope) signer(payload []byte, keys []PublicKey) (string, error) {
	message := pae(e.PayloadType, payload)
	bad := ""
	for _, s := range e.Signatures {
		sig, err := unbase64(s.Sig)
		if err != nil {
			return "", fmt.Errorf("%w: signature: %w", ErrMalformed, err)
		}
		for _, k := range keys {
			if len(sig) == ed25519.SignatureSize && len(k.key) == ed25519.PublicKeySize && ed25519.Verify(k.key, message, sig) {
				return k.ID(), nil
			}
			if s.KeyID == k.ID() {
				bad = s.KeyID
			}
		}
	}
	if bad != "" {
		return "", fmt.Errorf("%w: it says it is by key %s", ErrBadSignature, bad)
	}
	return "", fmt.Errorf("%w: it says it is by key %.80q", ErrUnknownKey, e.Signatures[0].KeyID)
}

// pae is what is signed (protocol.md, "Signature Definition").
func pae(payloadType string, payload []byte) []byte {
	p := append([]byte("DSSEv1 "), strconv.Itoa(len(payloadType))...)
	p = append(append(p, ' '), payloadType...)
	p = strconv.AppendInt(append(p, ' '), int64(len(payload)), 10)
	return append(append(p, ' '), payload...)
}

// unbase64 takes both alphabets, as envelope.md wants.
func unbase64(s string) ([]byte, error) {
	p, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		if q, err := base64.URLEncoding.DecodeString(s); err == nil {
			return q, nil
		}
	}
	return p, err
}

// wire is a Statement as JSON.
type wire struct {
	Manifest digest.Digest `json:"manifest"`
	Root     digest.Digest `json:"root"`
	Prefix   int64         `json:"prefix"`
	Index    wireBlob      `json:"index"`
	Bundle   *wireBlob     `json:"bundle,omitempty"`
	Created  string        `json:"created"` // RFC 3339, UTC
}

type wireBlob struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
}

func (s *Statement) encode() ([]byte, error) {
	w := wire{s.Manifest, s.Root.Digest(), s.Prefix, wireBlob(s.Index), nil, s.Created.UTC().Format(time.RFC3339)}
	if s.Bundle != (index.Blob{}) {
		b := wireBlob(s.Bundle)
		w.Bundle = &b
	}
	if err := w.check(); err != nil {
		return nil, err
	}
	return json.Marshal(w)
}

func decode(p []byte) (s Statement, err error) {
	var w wire
	if err := json.Unmarshal(p, &w); err != nil {
		return s, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if err := w.check(); err != nil {
		return s, err
	}
	s = Statement{Manifest: w.Manifest, Prefix: w.Prefix, Index: index.Blob(w.Index)}
	if w.Bundle != nil {
		s.Bundle = index.Blob(*w.Bundle)
	}
	if s.Root, err = layers.ParseSum(w.Root); err != nil {
		return s, fmt.Errorf("%w: root: %w", ErrMalformed, err)
	}
	if s.Created, err = time.Parse(time.RFC3339, w.Created); err != nil {
		return s, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	s.Created = s.Created.UTC()
	return s, nil
}

func (w *wire) check() error {
	blobs := []wireBlob{w.Index}
	if w.Bundle != nil {
		blobs = append(blobs, *w.Bundle)
	}
	for _, b := range blobs {
		if b.Size <= 0 || b.Digest.Validate() != nil {
			return fmt.Errorf("%w: blob %.80q of %d bytes", ErrMalformed, b.Digest, b.Size)
		}
	}
	if w.Manifest.Validate() != nil || w.Prefix <= 0 || w.Prefix > w.Index.Size {
		return fmt.Errorf("%w: manifest %.80q, prefix of %d bytes of %d", ErrMalformed, w.Manifest, w.Prefix, w.Index.Size)
	}
	return nil
}
