package integration

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"

	"github.com/opencontainers/go-digest"
)

// A selector says which requests a fault is about.
type selector func(r *http.Request) bool

func blob(d digest.Digest) selector { return func(r *http.Request) bool { return isBlob(r, d) } }

func everything(*http.Request) bool { return true }

// status answers with code.
func status(which selector, code int, header ...string) fault {
	return func(w http.ResponseWriter, r *http.Request, _ func() *httptest.ResponseRecorder) bool {
		if !which(r) {
			return false
		}
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
		return true
	}
}

// change lets f alter the registry's own answer to a GET.
func change(which selector, f func(r *http.Request, a *httptest.ResponseRecorder, body []byte) []byte) fault {
	return func(w http.ResponseWriter, r *http.Request, good func() *httptest.ResponseRecorder) bool {
		if !which(r) || r.Method != http.MethodGet {
			return false
		}
		a := good()
		body := f(r, a, a.Body.Bytes())
		for k, v := range a.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(a.Code)
		w.Write(body) // less than Content-Length: the connection breaks
		return true
	}
}

// flip changes the byte at off of the blob, in whatever range it is sent. A
// negative off counts from its end.
func flip(d digest.Digest, size, off int64) fault {
	if off < 0 {
		off += size
	}
	return change(blob(d), func(r *http.Request, _ *httptest.ResponseRecorder, body []byte) []byte {
		if at := off - rangeStart(r, size); at >= 0 && at < int64(len(body)) {
			body[at] ^= 1
		}
		return body
	})
}

// rangeStart returns where the range that r asks for begins.
func rangeStart(r *http.Request, size int64) int64 {
	var start int64
	h := r.Header.Get("Range")
	if len(h) < len("bytes=") {
		return 0
	}
	for _, c := range h[len("bytes="):] {
		if c < '0' || c > '9' {
			break
		}
		start = start*10 + int64(c-'0')
	}
	if h[len("bytes=")] == '-' {
		n, _ := strconv.ParseInt(h[len("bytes=-"):], 10, 64)
		start = size - n
	}
	return start
}

// whole ignores ranges.
func whole(which selector) fault {
	return func(w http.ResponseWriter, r *http.Request, good func() *httptest.ResponseRecorder) bool {
		if which(r) {
			r.Header.Del("Range")
		}
		return false
	}
}

// claims sends the range that was asked for, and says of it what f makes of its
// first and last byte and of the size of the blob; "" is nothing.
func claims(which selector, f func(first, last, size int64) string) fault {
	return change(which, func(_ *http.Request, a *httptest.ResponseRecorder, body []byte) []byte {
		var first, last, size int64
		if n, _ := fmt.Sscanf(a.Header().Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &size); n < 3 {
			return body // it is the whole
		}
		a.Header().Del("Content-Range")
		if c := f(first, last, size); c != "" {
			a.Header().Set("Content-Range", c)
		}
		return body
	})
}

// later says that a range is one byte further back than it is.
func later(first, last, size int64) string { return fmt.Sprintf("bytes %d-%d/%d", first+1, last, size) }

// shifted sends what comes a byte after the range that was asked for, and says nothing of it.
func shifted(im *image, i int) fault {
	d := im.layer(i)
	return change(blob(d), func(r *http.Request, a *httptest.ResponseRecorder, body []byte) []byte {
		if a.Code != http.StatusPartialContent {
			return body
		}
		b := append(im.blobs[d][:len(im.blobs[d]):len(im.blobs[d])], 0)
		first := rangeStart(r, int64(len(b)-1)) + 1
		return b[first : first+int64(len(body))]
	})
}

// cut breaks the connection in the middle of every body that is longer than spare bytes.
func cut(which selector, spare int) fault {
	return change(which, func(_ *http.Request, a *httptest.ResponseRecorder, body []byte) []byte {
		a.Header().Set("Content-Length", strconv.Itoa(len(body)))
		if len(body) > spare {
			body = body[:(len(body)+1)/2]
		}
		return body
	})
}

// broken breaks the connection before the first byte of a body.
func broken(which selector) fault {
	return change(which, func(_ *http.Request, a *httptest.ResponseRecorder, body []byte) []byte {
		a.Header().Set("Content-Length", strconv.Itoa(len(body)))
		return nil
	})
}

// shorten sends half of the body as if it were all.
func shorten(which selector) fault {
	return change(which, func(_ *http.Request, a *httptest.ResponseRecorder, body []byte) []byte {
		a.Code = http.StatusOK
		a.Header().Del("Content-Range")
		a.Header().Set("Content-Length", strconv.Itoa(len(body)/2))
		return body[:len(body)/2]
	})
}

// silent accepts requests and never answers.
func silent(which selector) fault {
	return func(_ http.ResponseWriter, r *http.Request, _ func() *httptest.ResponseRecorder) bool {
		if !which(r) {
			return false
		}
		<-r.Context().Done()
		return true
	}
}
