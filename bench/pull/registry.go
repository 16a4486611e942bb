package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A server is a registry on loopback whose blobs are those of an OCI layout.
type server struct {
	http.Server
	host string
}

// serve starts a registry with the images of the layout at dir, each as
// bench/TAG:latest. Blobs are read from the layout; nothing is copied.
func serve(dir string) (*server, error) {
	quiet := log.New(io.Discard, "", 0)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &server{host: l.Addr().String()}
	s.Handler = registry.New(registry.Logger(quiet), registry.WithBlobHandler(registry.NewDiskBlobHandler(filepath.Join(dir, "blobs"))))
	go s.Serve(l) // until Close
	if err := s.push(dir); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *server) ref(tag string) string { return s.host + "/bench/" + tag + ":latest" }

func (s *server) push(dir string) error {
	p, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		return err
	}
	var ix ocispec.Index
	if err := json.Unmarshal(p, &ix); err != nil {
		return err
	}
	for _, m := range ix.Manifests {
		p, err := os.ReadFile(filepath.Join(dir, "blobs", m.Digest.Algorithm().String(), m.Digest.Encoded()))
		if err != nil {
			return err
		}
		url := fmt.Sprintf("http://%s/v2/bench/%s/manifests/latest", s.host, m.Annotations[ocispec.AnnotationRefName])
		req, err := http.NewRequest(http.MethodPut, url, bytes.NewReader(p))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", m.MediaType)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusCreated {
			return fmt.Errorf("PUT %s: %s", url, resp.Status)
		}
	}
	return nil
}
