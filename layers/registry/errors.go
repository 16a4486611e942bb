package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/opencontainers/go-digest"
)

// Kinds of failure. Errors of this package wrap one of them, or
// *layers.DigestError, or come from the file system.
var (
	// ErrNotFound says that a reference, manifest or blob does not exist.
	ErrNotFound = fmt.Errorf("not found: %w", fs.ErrNotExist)
	// ErrDenied says that the credentials, or none, do not suffice.
	ErrDenied = fmt.Errorf("access denied: %w", fs.ErrPermission)
	// ErrUnavailable says that nobody answered usefully in time; later may be better.
	ErrUnavailable = errors.New("unavailable")
	// ErrProtocol says that a server answered what was not asked: another range,
	// another size, an endless redirect.
	ErrProtocol = errors.New("wrong answer")
	// ErrNoRange says that a server sends only whole blobs. [Registry.Stream] works with it.
	ErrNoRange = fmt.Errorf("range requests are ignored: %w", errors.ErrUnsupported)
	// ErrBadRef says that a reference cannot be parsed.
	ErrBadRef = fmt.Errorf("malformed reference: %w", fs.ErrInvalid)
	// ErrBadManifest says that a manifest, index, config or archive is not what it should be.
	ErrBadManifest = fmt.Errorf("malformed image: %w", fs.ErrInvalid)
	// ErrUnsupported says that the thing exists and is not for us: an artifact, a schema 1 manifest, a sparse archive.
	ErrUnsupported = errors.ErrUnsupported
)

// A StatusError is an HTTP answer that is not success.
type StatusError struct {
	Method string
	URL    string // without its query, which may hold a signature
	Code   int
	Detail string // the registry's own message, one line, may be empty
	// After is how long the server asks to wait; 0 if it does not say.
	After time.Duration
}

func (e *StatusError) Error() string {
	s := fmt.Sprintf("%s %s: %d %s", e.Method, e.URL, e.Code, http.StatusText(e.Code))
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	return s
}

// Is tells the kind of a status.
func (e *StatusError) Is(target error) bool {
	switch e.Code {
	case http.StatusNotFound, http.StatusGone:
		return target == ErrNotFound || target == fs.ErrNotExist
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired:
		return target == ErrDenied || target == fs.ErrPermission
	}
	return target == ErrUnavailable && e.transient()
}

// transient reports whether the same request may succeed later.
func (e *StatusError) transient() bool {
	switch e.Code {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return true
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
		return false
	}
	return e.Code >= 500
}

// A SizeError says that a blob has another size than its descriptor.
type SizeError struct {
	From      string // what was read, for the message
	Want, Got int64
}

func (e *SizeError) Error() string {
	return fmt.Sprintf("%s: size is %d, want %d", e.From, e.Got, e.Want)
}

// Is makes a SizeError a wrong answer.
func (e *SizeError) Is(target error) bool { return target == ErrProtocol || target == fs.ErrInvalid }

// A PlatformError says that an image exists, but not for the platform.
type PlatformError struct {
	Want string
	Have []string // some of what exists, sorted
}

func (e *PlatformError) Error() string {
	if len(e.Have) == 0 {
		return "no image for platform " + e.Want + ", nor for any other"
	}
	return "no image for platform " + e.Want + ", only for " + strings.Join(e.Have, ", ")
}

// Is makes a PlatformError a kind of ErrNotFound.
func (e *PlatformError) Is(target error) bool {
	return target == ErrNotFound || target == fs.ErrNotExist
}

// A transportError is a failure below HTTP: name, connection, TLS, or nothing in time.
type transportError struct {
	method, url string
	err         error
}

func (e *transportError) Error() string        { return e.method + " " + e.url + ": " + e.err.Error() }
func (e *transportError) Unwrap() error        { return e.err }
func (e *transportError) Is(target error) bool { return target == ErrUnavailable }

// hostErrors is what several hosts answered, in the order they were asked. The
// last is the registry itself and decides the kind.
type hostErrors []error

func (e hostErrors) Error() string {
	parts := make([]string, len(e))
	for i, err := range e {
		parts[i] = err.Error()
	}
	return strings.Join(parts, "; ")
}

func (e hostErrors) Unwrap() error { return e[len(e)-1] }

// badDigest says which part of an image has a digest that cannot be one.
func badDigest(what string, d digest.Digest) error {
	return fmt.Errorf("%w: %s has digest %q", ErrBadManifest, what, clip(string(d)))
}

// cleanURL is u without what may be secret.
func cleanURL(u *url.URL) string {
	c := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	return c.String()
}

// cleanErr drops the wrapping of net/http that repeats method and URL, query included.
func cleanErr(err error) error {
	if ue, ok := errors.AsType[*url.Error](err); ok {
		return ue.Err
	}
	return err
}

// detail is the first message of a registry's error document, without secrets that it was sent.
func detail(body []byte, secrets ...string) string {
	var doc struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(body, &doc) != nil || len(doc.Errors) == 0 {
		return ""
	}
	e := doc.Errors[0]
	return clip(conceal(strings.ToLower(strings.TrimSuffix(e.Code+": "+e.Message, ": ")), secrets...)) // before a part of one is cut off
}

// clip makes outside text fit for one line of a message.
func clip(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) > 160 {
		s = strings.ToValidUTF8(s[:160], "") + "…"
	}
	return s
}
