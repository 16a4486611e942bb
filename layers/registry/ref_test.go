package registry

import (
	"errors"
	"strings"
	"testing"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseRef(t *testing.T) {
	for _, c := range []struct{ in, canonical, familiar string }{
		{"debian", "docker.io/library/debian:latest", "debian:latest"},
		{"debian:12", "docker.io/library/debian:12", "debian:12"},
		{"me/app", "docker.io/me/app:latest", "me/app:latest"},
		{"docker.io/library/debian", "docker.io/library/debian:latest", "debian:latest"},
		{"index.docker.io/library/debian", "docker.io/library/debian:latest", "debian:latest"},
		{"debian@" + someDigest, "docker.io/library/debian@" + someDigest, "debian@" + someDigest},
		{"debian:12@" + someDigest, "docker.io/library/debian:12@" + someDigest, "debian:12@" + someDigest},
		{"localhost/x", "localhost/x:latest", "localhost/x:latest"},
		{"localhost:5000/x", "localhost:5000/x:latest", "localhost:5000/x:latest"},
		{"localhost:5000/x:v1", "localhost:5000/x:v1", "localhost:5000/x:v1"},
		{"127.0.0.1:5000/a/b/c:v1", "127.0.0.1:5000/a/b/c:v1", "127.0.0.1:5000/a/b/c:v1"},
		{"[::1]:5000/x:v1", "[::1]:5000/x:v1", "[::1]:5000/x:v1"},
		{"ghcr.io/a/b:C_1.2", "ghcr.io/a/b:C_1.2", "ghcr.io/a/b:C_1.2"},
		{"oci", "docker.io/library/oci:latest", "docker.io/library/oci:latest"},
		{"oci:dir", "oci:dir", "oci:dir"},
		{"oci:/a/../b/", "oci:/b", "oci:/b"},
		{"oci:/dir:v1", "oci:/dir:v1", "oci:/dir:v1"},
		{"oci:/dir:docker.io/library/x:v1", "oci:/dir:docker.io/library/x:v1", "oci:/dir:docker.io/library/x:v1"},
		{"oci:/dir@" + someDigest, "oci:/dir@" + someDigest, "oci:/dir@" + someDigest},
		{"oci:/dir:v1@" + someDigest, "oci:/dir:v1@" + someDigest, "oci:/dir:v1@" + someDigest},
		{"oci-archive:a.tar:x", "oci-archive:a.tar:x", "oci-archive:a.tar:x"},
		{"docker-archive:a.tar:busybox:latest", "docker-archive:a.tar:busybox:latest", "docker-archive:a.tar:busybox:latest"},
	} {
		r, err := ParseRef(c.in)
		if err != nil || r.String() != c.canonical || r.Familiar() != c.familiar {
			t.Errorf("ParseRef(%q) = %q, %q, %v, want %q, %q", c.in, r, r.Familiar(), err, c.canonical, c.familiar)
		}
		for _, s := range []string{r.String(), r.Familiar()} {
			if again, err := ParseRef(s); again != r || err != nil {
				t.Errorf("ParseRef(%q) = %+v, %v, want %+v", s, again, err, r)
			}
		}
	}
	for _, bad := range []string{
		"", " ", "UPPER", "a/B", "a:b:c", "a@sha256:12", "a@" + someDigest + "0", "a//b", "-a", "a:" + strings.Repeat("x", 129), "http://x/y", "x y",
		strings.Repeat("a", 64), strings.Repeat("f", 64), "oci:", "oci::x", "oci:dir:", "oci:a\x00b", "oci:dir@sha256:12", "oci-archive:", "docker-archive:",
		"oci:dir:a b", "oci:dir:a\nb", strings.Repeat("a/", 9000), "../x", "a/../b", "a:..@" + someDigest + "/x",
	} {
		if r, err := ParseRef(bad); !errors.Is(err, ErrBadRef) {
			t.Errorf("ParseRef(%q) = %+v, %v, want ErrBadRef", clip(bad), r, err)
		} else if strings.ContainsAny(err.Error(), "\n") {
			t.Errorf("more than a line: %q", err)
		}
	}
}

func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"debian", "localhost:5000/x:v1", "a@" + someDigest, "oci:/d:t@" + someDigest, "docker-archive:a:b:c", "oci:a:" + strings.Repeat("é", 100)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRef(s)
		if err != nil {
			if !errors.Is(err, ErrBadRef) {
				t.Errorf("ParseRef(%q) = %v, want ErrBadRef", s, err)
			}
			return
		}
		if again, err := ParseRef(r.String()); err != nil || again != r {
			t.Errorf("ParseRef(%q).String() = %q is parsed as %+v, %v; want %+v", s, r, again, err, r)
		}
		if again, err := ParseRef(r.Familiar()); err != nil || again != r {
			t.Errorf("ParseRef(%q).Familiar() = %q is parsed as %+v, %v; want %+v", s, r.Familiar(), again, err, r)
		}
	})
}
