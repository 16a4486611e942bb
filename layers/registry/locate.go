package registry

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxLocate = 64 // layers of an image whose place is asked for
	locateAt  = 8  // at the same time
)

// locating is s with the difference that it finds out where the blobs are: at
// once, if a host is known to redirect, or else when the first small blob is
// redirected. Who is not redirected pays nothing. Over HTTP/1.1 it does nothing:
// its requests would take the connections of those that somebody waits for.
func (s *remote) locating(blobs []ocispec.Descriptor) *remote {
	rp, err := s.reg.repo(s.ref)
	if err != nil {
		return s // whatever is read next fails, too
	}
	p, err := rp.plan(docker.HostCapabilityPull)
	if err != nil {
		return s
	}
	h := p.pick(time.Now()).repoHost
	start := sync.OnceFunc(func() { h.locate(blobs[:min(len(blobs), maxLocate)]) })
	if !h.many.Load() {
		return s
	}
	if time.Now().UnixNano() < h.moves.Load() {
		start()
	}
	return &remote{reg: s.reg, ref: s.ref, moved: start}
}

// locate asks where blobs are, in the background: it is an aid to others, who
// ask themselves where it fails.
func (h *repoHost) locate(blobs []ocispec.Descriptor) {
	reg := h.repo.reg
	slots := make(chan struct{}, locateAt)
	for _, b := range blobs {
		reg.wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(reg.base, reg.opt.Timeouts.Header)
			defer cancel()
			if err := h.locate1(ctx, b); err != nil {
				reg.log.Debug("layer is not located", "layer", b.Digest, "err", err)
			}
		})
	}
}

func (h *repoHost) locate1(ctx context.Context, b ocispec.Descriptor) error {
	if h.targets.get(b.Digest) != nil {
		return nil
	}
	resp, to, err := h.send(ctx, &call{
		method: http.MethodGet, url: h.url("blobs", string(b.Digest)), access: h.pull,
		header:   http.Header{"Range": {"bytes=0-0"}}, // where a host has it itself
		deadline: time.Now().Add(h.repo.reg.opt.Timeouts.Header), stop: true,
	})
	if err != nil {
		return err
	}
	if to == nil {
		drain(resp)
		return nil
	}
	h.moved(b.Digest, to)
	return nil
}
