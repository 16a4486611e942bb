package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers/indexfile"
	"github.com/snapfs/snapfs/layers/objects"
	"github.com/snapfs/snapfs/layers/tarindex"
)

// childVerb makes this program the system under test, in a process of its own,
// so that the registry's time and memory are not counted as ours.
const childVerb = "unpack-child"

// startChild starts it. It pulls what it reads from its standard input, a
// reference a line, and answers with a line.
func startChild(_ context.Context, work string) (*daemon, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	d, err := newDaemon(work, []string{self, childVerb, work})
	if err != nil {
		return nil, err
	}
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := d.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewReader(out)
	answer := func() error {
		if line, err := lines.ReadString('\n'); err != nil || line != "ok\n" {
			return fmt.Errorf("child: %q, %v", line, err)
		}
		return nil
	}
	d.pull = func(_ context.Context, ref string) error {
		if _, err := fmt.Fprintln(in, ref); err != nil {
			return err
		}
		return answer()
	}
	err = answer() // it has opened its store
	go func() { d.done <- d.cmd.Wait() }()
	return d, err
}

// child opens a store and pulls into it.
func child(args []string) (err error) {
	if len(args) != 1 {
		return errors.New("usage: " + childVerb + " DIR")
	}
	s, err := objects.Open(args[0], objects.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	fmt.Println("ok")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if err := pull(context.Background(), s, args[0], lines.Text()); err != nil {
			return err
		}
		fmt.Println("ok")
	}
	return nil
}

// pull does what the daemon does for an image without TOCs.
func pull(ctx context.Context, s *objects.Store, dir, ref string) error {
	host, name, _ := strings.Cut(strings.TrimSuffix(ref, ":latest"), "/")
	repo := "http://" + host + "/v2/" + name
	var m ocispec.Manifest
	var cfg ocispec.Image
	if err := getJSON(ctx, repo+"/manifests/latest", &m); err != nil {
		return err
	}
	blob := func(d digest.Digest) string { return repo + "/blobs/" + d.String() }
	if err := getJSON(ctx, blob(m.Config.Digest), &cfg); err != nil {
		return err
	}
	var list []tarindex.Layer
	for i, desc := range m.Layers {
		list = append(list, tarindex.Layer{Desc: desc, DiffID: cfg.RootFS.DiffIDs[i],
			Open: func(ctx context.Context) (io.ReadCloser, error) { return get(ctx, blob(desc.Digest)) }})
	}
	unpacked, err := tarindex.UnpackAll(ctx, list, s)
	if err != nil {
		return err
	}
	seen := make(map[*tarindex.Unpacked]bool)
	for i, u := range unpacked {
		if seen[u] {
			continue
		}
		seen[u] = true
		if err := errors.Join(u.Close(), indexfile.Write(filepath.Join(dir, m.Layers[i].Digest.Encoded()+".idx"), u.Index)); err != nil {
			return err
		}
	}
	return nil
}

func get(ctx context.Context, url string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %s", url, errors.Join(errors.New(resp.Status), resp.Body.Close()))
	}
	return resp.Body, nil
}

func getJSON(ctx context.Context, url string, v any) (err error) {
	r, err := get(ctx, url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	return json.NewDecoder(r).Decode(v)
}
