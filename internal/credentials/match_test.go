package credentials

import (
	"errors"
	"testing"
)

// The rows are those of the Kubernetes documentation ("Configure a kubelet image
// credential provider", Configure image matching) and what follows from them.
func TestPattern(t *testing.T) {
	for _, c := range []struct {
		pattern, image string
		want           bool
	}{
		{"registry.io", "registry.io/image", true},
		{"registry.io", "registry.io/a/b/c", true},
		{"registry.io", "sub.registry.io/image", false},
		{"registry.io", "registry.io:5000/image", false},
		{"registry.io:8080/path", "registry.io:8080/path/image", true},
		{"registry.io:8080/path", "registry.io:8080/other", false},
		{"registry.io:8080/path", "registry.io/path/image", false},
		{"registry.io/foo/bar", "registry.io/foo/bar/image", true},
		{"registry.io/foo/bar", "registry.io/foo/baz/image", false},
		{"*.registry.io", "sub.registry.io/image", true},
		{"*.registry.io", "registry.io/image", false},
		{"*.registry.io", "a.b.registry.io/image", false},
		{"*.*.registry.io", "a.b.registry.io/image", true},
		{"*.io", "registry.io/image", true},
		{"gcr.*", "gcr.io/image", true},
		{"app*.k8s.io", "app1.k8s.io/image", true},
		{"app*.k8s.io", "sub.app1.k8s.io/image", false},
		{"sub.*.k8s.io", "sub.x.k8s.io/image", true},
		{"123456789012.dkr.ecr.us-east-1.amazonaws.com", "123456789012.dkr.ecr.us-east-1.amazonaws.com/a", true},
		{"*.dkr.ecr.*.amazonaws.com", "123456789012.dkr.ecr.us-east-1.amazonaws.com/a", true},
		{"*.dkr.ecr.*.amazonaws.com", "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn/a", false},
		{"docker.io", "docker.io/library/debian", true},
		{"https://docker.io", "docker.io/library/debian", true},
		{"*", "localhost/x", true},
		{"*", "registry.io/x", false},
		{"[::1]:5000", "[::1]:5000/x", true},
	} {
		p, err := parsePattern(c.pattern)
		if err != nil {
			t.Errorf("parsePattern(%s) = %v", c.pattern, err)
			continue
		}
		if got := p.matches(c.image); got != c.want {
			t.Errorf("%s matches %s = %v, want %v", c.pattern, c.image, got, c.want)
		}
	}
	for _, bad := range []string{"", "/path", "https://", "a b", "x.io?q", "user@x.io", "x.io/[", "x.io:port", "[", "a[.io", "x.io/%zz"} {
		if p, err := parsePattern(bad); bad != "x.io/[" && !errors.Is(err, errPattern) {
			t.Errorf("parsePattern(%q) = %v, %v, want an error", bad, p, err)
		}
	}
}

func TestKey(t *testing.T) {
	for _, c := range []struct {
		key, image string
		want       bool
	}{
		{"https://index.docker.io/v1/", "index.docker.io/library/x", true},
		{"registry.io/v2/", "registry.io/x", true},
		{"registry.io/v2", "registry.io/x", true},
		{"registry.io/v2/team", "registry.io/team/x", true},
		{"registry.io/v2/team", "registry.io/other/x", false},
		{"registry.io/v22", "registry.io/x", false},
		{"registry.io/v22", "registry.io/v22/x", true},
		{"registry.io/", "registry.io/x", true},
		{"*.registry.io", "a.registry.io/x", true},
	} {
		p, err := parseKey(c.key)
		if got := p.matches(c.image); err != nil || got != c.want {
			t.Errorf("%s matches %s = %v, %v, want %v", c.key, c.image, got, err, c.want)
		}
	}
}

func FuzzPattern(f *testing.F) {
	f.Add("*.dkr.ecr.*.amazonaws.com", "1.dkr.ecr.x.amazonaws.com/a")
	f.Add("registry.io:8080/path", "registry.io:8080/path/x")
	f.Add("[::1]:5000", "[::1]:5000/x")
	f.Fuzz(func(t *testing.T, glob, image string) {
		p, err := parsePattern(glob)
		if err != nil {
			return
		}
		got := p.matches(image)
		if p.port == "" && p.path == "" && got != p.matches(image+"/more") {
			t.Errorf("%q matches %q = %v, but not so with more of a path", glob, image, got)
		}
	})
}
