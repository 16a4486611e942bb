package trust

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
)

// Sentinels of keys.
var (
	ErrBadKey  = errors.New("not an ed25519 key")
	ErrExposed = errors.New("private key that others can read")
)

const maxKeyFile = 1 << 20

// A PrivateKey signs.
type PrivateKey struct{ key ed25519.PrivateKey }

// A PublicKey verifies.
type PublicKey struct {
	key ed25519.PublicKey
	id  string
}

// Generate makes a new key.
func Generate() (PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	return PrivateKey{key}, err
}

// Public is the key that verifies what k signs.
func (k PrivateKey) Public() PublicKey {
	p, err := newPublic(k.key.Public())
	if err != nil {
		panic("trust: a private key without a public one: " + err.Error())
	}
	return p
}

func newPublic(key any) (PublicKey, error) {
	k, ok := key.(ed25519.PublicKey)
	if !ok {
		return PublicKey{}, fmt.Errorf("%w: %T", ErrBadKey, key)
	}
	der, err := x509.MarshalPKIXPublicKey(k)
	if err != nil {
		return PublicKey{}, err
	}
	sum := sha256.Sum256(der)
	return PublicKey{k, hex.EncodeToString(sum[:8])}, nil
}

// ID is a short name of k: the first 16 hexadecimal digits of the SHA-256 of its
// PKIX form, as in: openssl pkey -pubin -outform DER | sha256sum. It is for people
// and messages, no decision rests on it.
func (k PublicKey) ID() string { return k.id }

// PEM is k as a PKCS#8 "PRIVATE KEY".
func (k PrivateKey) PEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.key)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
}

// PEM is k as a PKIX "PUBLIC KEY".
func (k PublicKey) PEM() ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(k.key)
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), err
}

// ParsePrivate reads what PrivateKey.PEM writes.
func ParsePrivate(p []byte) (PrivateKey, error) {
	b, rest := pem.Decode(p)
	if b == nil || b.Type != "PRIVATE KEY" {
		return PrivateKey{}, fmt.Errorf("%w: no PEM block of type PRIVATE KEY", ErrBadKey)
	}
	if more, _ := pem.Decode(rest); more != nil {
		return PrivateKey{}, fmt.Errorf("%w: more than one", ErrBadKey)
	}
	key, err := x509.ParsePKCS8PrivateKey(b.Bytes)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("%w: %w", ErrBadKey, err)
	}
	k, ok := key.(ed25519.PrivateKey)
	if !ok {
		return PrivateKey{}, fmt.Errorf("%w: %T", ErrBadKey, key)
	}
	return PrivateKey{k}, nil
}

// ParsePublic reads one or more keys as PublicKey.PEM writes them.
func ParsePublic(p []byte) (keys []PublicKey, err error) {
	for {
		var b *pem.Block
		if b, p = pem.Decode(p); b == nil {
			break
		}
		if b.Type != "PUBLIC KEY" {
			return nil, fmt.Errorf("%w: PEM block of type %s, want PUBLIC KEY", ErrBadKey, b.Type)
		}
		key, err := x509.ParsePKIXPublicKey(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBadKey, err)
		}
		k, err := newPublic(key)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%w: no PEM block of type PUBLIC KEY", ErrBadKey)
	}
	return keys, nil
}

// SavePrivate writes k to a new file that its owner alone can read. A file that
// is there is left as it is: the error wraps fs.ErrExist.
func SavePrivate(path string, k PrivateKey) error {
	p, err := k.PEM()
	if err != nil {
		return err
	}
	return save(path, p, 0o600)
}

// SavePublic writes k to a new file.
func SavePublic(path string, k PublicKey) error {
	p, err := k.PEM()
	if err != nil {
		return err
	}
	return save(path, p, 0o644)
}

func save(path string, p []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(p)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// LoadPrivate reads a private key. A file that its group or others may read,
// write or run is refused with ErrExposed.
func LoadPrivate(path string) (PrivateKey, error) {
	p, mode, err := load(path)
	if err != nil {
		return PrivateKey{}, err
	}
	if mode.Perm()&0o077 != 0 {
		return PrivateKey{}, fmt.Errorf("%s: %w: mode %04o, want 0600", path, ErrExposed, mode.Perm())
	}
	k, err := ParsePrivate(p)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

// LoadPublic reads the public keys of files, each of which has one or more. A key
// that is there twice is returned once.
func LoadPublic(paths ...string) (keys []PublicKey, err error) {
	seen := make(map[string]bool)
	for _, path := range paths {
		p, _, err := load(path)
		if err != nil {
			return nil, err
		}
		more, err := ParsePublic(p)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		for _, k := range more {
			if !seen[string(k.key)] {
				seen[string(k.key)] = true
				keys = append(keys, k)
			}
		}
	}
	return keys, nil
}

// load reads a file, and its mode from the same descriptor.
func load(path string) (p []byte, mode os.FileMode, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxKeyFile {
		return nil, 0, fmt.Errorf("%s: %w: %v of %d bytes", path, ErrBadKey, info.Mode(), info.Size())
	}
	p, err = io.ReadAll(io.LimitReader(f, maxKeyFile))
	return p, info.Mode(), err
}
