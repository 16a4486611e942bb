package credentials

import (
	"encoding/base64"
	"errors"
	"strings"
	"time"

	"github.com/snapfs/snapfs/layers/registry"
)

// An Auth is the AuthConfig of the CRI (runtime.v1, api.proto).
type Auth struct {
	Username      string
	Password      string
	Auth          string // base64 of user:password
	ServerAddress string
	IdentityToken string
	RegistryToken string
}

// maxAuth bounds all fields of an Auth together, bytes. The largest known, tokens
// of clouds, have some 5 KiB.
const maxAuth = 64 << 10

var (
	errNoAuth  = errors.New("no credentials")
	errBadAuth = errors.New("auth is not the base64 of user:password")
)

// credential reads an Auth as containerd does (internal/cri/server/images/image_pull.go,
// ParseAuth), and registry tokens, too, which containerd ignores. The host is for
// which one it is, "" for any. It is errNoAuth if there is nothing in it.
func (a *Auth) credential() (cred registry.Credential, host string, err error) {
	n := len(a.Username) + len(a.Password) + len(a.Auth) + len(a.ServerAddress) + len(a.IdentityToken) + len(a.RegistryToken)
	if n > maxAuth {
		return cred, "", errTooMuch("bytes of credentials", n, maxAuth)
	}
	cred.Source = "CRI"
	switch {
	case a.Username != "":
		cred.User, cred.Secret = a.Username, a.Password
	case a.IdentityToken != "":
		cred.Secret = a.IdentityToken
	case a.Auth != "":
		raw, err := base64.StdEncoding.DecodeString(a.Auth)
		if err != nil {
			return registry.Credential{}, "", errBadAuth
		}
		user, password, ok := strings.Cut(string(raw), ":")
		if !ok || user == "" {
			return registry.Credential{}, "", errBadAuth
		}
		cred.User, cred.Secret = user, strings.Trim(password, "\x00")
	case a.RegistryToken != "":
		cred.Bearer = a.RegistryToken
	}
	if cred.IsZero() {
		return registry.Credential{}, "", errNoAuth
	}
	return cred, hostOf(a.ServerAddress), nil
}

// hostOf drops scheme and path of a server's address.
func hostOf(address string) string {
	if _, rest, ok := strings.Cut(address, "://"); ok {
		address = rest
	}
	address, _, _ = strings.Cut(address, "/")
	return address
}

// sameHost reports whether two names are of one registry: Docker Hub has three.
func sameHost(a, b string) bool { return a == b || isHub(a) && isHub(b) }

func isHub(host string) bool {
	switch host {
	case "docker.io", "index.docker.io", "registry-1.docker.io":
		return true
	}
	return false
}

// ends is when a password from an authority that tells no lifetime is known to
// end: ECR's are good for 12 hours (Amazon ECR user guide, "Private registry
// authentication").
func ends(user string, got time.Time) time.Time {
	if user == "AWS" {
		return got.Add(12 * time.Hour)
	}
	return time.Time{}
}
