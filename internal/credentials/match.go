package credentials

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path"
	"strings"
)

// A pattern says which images something is for, as kubelet's matchImages does:
// host, perhaps with a port, perhaps with a path ("*.dkr.ecr.*.amazonaws.com",
// "registry.io:8080/path"). Each label of the host is a glob by itself; the port
// must be the same, or be absent in both; the path is a prefix.
// (k8s.io/kubernetes, pkg/credentialprovider, URLsMatch.)
type pattern struct {
	labels []string
	port   string
	path   string
}

var errPattern = errors.New("not HOST[:PORT][/PATH]")

// parsePattern reads a pattern; a scheme before it is allowed and ignored.
func parsePattern(s string) (pattern, error) {
	if _, rest, ok := strings.Cut(s, "://"); ok {
		s = rest
	}
	u, err := url.Parse("https://" + s)
	if err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return pattern{}, fmt.Errorf("%w: %q", errPattern, clip(s))
	}
	p := split(u.Host, u.Path)
	for _, l := range p.labels {
		if _, err := path.Match(l, ""); err != nil {
			return pattern{}, fmt.Errorf("%w: %q: %w", errPattern, clip(s), err)
		}
	}
	return p, nil
}

func split(hostport, at string) pattern {
	host, port := hostport, ""
	if h, p, err := net.SplitHostPort(hostport); err == nil {
		host, port = h, p
	}
	return pattern{labels: strings.Split(host, "."), port: port, path: at}
}

// matches reports whether p is for a repository, as "docker.io/library/debian".
func (p pattern) matches(image string) bool {
	host, rest, _ := strings.Cut(image, "/")
	i := split(host, "/"+rest)
	if p.port != i.port || len(p.labels) != len(i.labels) || !strings.HasPrefix(i.path, p.path) {
		return false
	}
	for k, l := range p.labels {
		if ok, err := path.Match(l, i.labels[k]); err != nil || !ok {
			return false
		}
	}
	return true
}

// parseKey reads a key of a docker config's auths: a pattern that may end in the
// path of the registry's API, which means nothing there.
func parseKey(s string) (pattern, error) {
	p, err := parsePattern(s)
	for _, api := range []string{"/v1", "/v2"} {
		if rest, ok := strings.CutPrefix(p.path, api); ok && (rest == "" || rest[0] == '/') {
			p.path = rest
			break
		}
	}
	if p.path == "/" {
		p.path = ""
	}
	return p, err
}
