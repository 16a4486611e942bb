package images

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/events"
	"github.com/snapfs/snapfs/layers/convert"
	"github.com/snapfs/snapfs/layers/lazy"
	"github.com/snapfs/snapfs/layers/registry"
)

// Push copies a known image to a.Dst, by default where its name says. The
// store has no compressed layers: what the destination lacks is streamed from
// where the image came from.
func (s *Service) Push(ctx context.Context, a control.PushArgs, progress func(control.Progress)) (control.Pushed, error) {
	k, err := s.Get(a.Src)
	if err != nil {
		return control.Pushed{}, err
	}
	if a.Dst == "" {
		a.Dst = k.Ref
	}
	dst, err := registry.ParseRef(a.Dst)
	if err != nil {
		return control.Pushed{}, err
	}
	from, err := registry.ParseRef(k.Source)
	if err != nil {
		return control.Pushed{}, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(k.Manifest, &m); err != nil {
		return control.Pushed{}, err
	}
	src := &registry.Source{Root: registry.Document{Desc: k.Desc, Raw: k.Manifest}}
	src.Blobs = append(src.Blobs, registry.BytesBlob(m.Config, k.manifestRow.Config))
	for _, l := range m.Layers {
		src.Blobs = append(src.Blobs, registry.SourceBlob{Desc: l, From: from,
			Open: func(ctx context.Context) (io.ReadCloser, error) { return s.Registry.Stream(ctx, from, l) }})
	}
	return s.push(ctx, dst, src, progress)
}

func (s *Service) push(ctx context.Context, dst registry.Ref, src *registry.Source, progress func(control.Progress)) (control.Pushed, error) {
	desc, err := s.Registry.Push(ctx, dst, src, pushing(progress))
	if err != nil {
		return control.Pushed{}, err
	}
	s.event(events.Push, dst.String(), "digest", desc.Digest)
	total := desc.Size
	for _, b := range src.Blobs {
		total += b.Desc.Size
	}
	return control.Pushed{Ref: dst.Familiar(), Digest: string(desc.Digest), Size: total}, nil
}

// pushing tells how far what is pushed is.
func pushing(progress func(control.Progress)) func(registry.PushProgress) {
	var mu sync.Mutex // blobs are pushed at the same time
	return func(p registry.PushProgress) {
		mu.Lock()
		defer mu.Unlock()
		action := "pushing"
		if p.How == "exists" || p.How == "mounted" {
			action = p.How
		}
		progress(control.Progress{ID: short(p.Desc.Digest), Action: action, Off: p.Off, Size: p.Desc.Size, Done: p.Done})
	}
}

// Convert makes a lazily readable copy of the image a.Src, known or not, at a.Dst.
func (s *Service) Convert(ctx context.Context, a control.ConvertArgs, progress func(control.Progress)) (control.Pushed, error) {
	format := a.Format
	if format == "" {
		format = lazy.EStargz
	}
	if format != lazy.EStargz && format != lazy.ZstdChunked {
		return control.Pushed{}, &control.Error{Code: control.CodeInvalid, Message: fmt.Sprintf("format %q: want %s or %s", format, lazy.EStargz, lazy.ZstdChunked)}
	}
	dst, err := registry.ParseRef(a.Dst)
	if err != nil {
		return control.Pushed{}, err
	}
	from, err := registry.ParseRef(a.Src)
	if err != nil {
		return control.Pushed{}, err
	}
	progress(control.Progress{Action: "resolving"})
	img, err := s.Registry.Resolve(ctx, from, a.Platform)
	if err != nil {
		return control.Pushed{}, err
	}
	progress(control.Progress{Action: "resolving", Done: true})
	dir, err := os.MkdirTemp(filepath.Join(s.Root, "tmp"), "convert-")
	if err != nil {
		return control.Pushed{}, err
	}
	defer os.RemoveAll(dir)
	src, err := convertInto(ctx, dir, img, convert.Options{Format: format, Level: a.Level}, progress)
	if err != nil {
		return control.Pushed{}, fmt.Errorf("convert %s: %w", from.Familiar(), err)
	}
	return s.push(ctx, dst, src, progress)
}

// convertInto converts the layers of img into files of dir.
func convertInto(ctx context.Context, dir string, img *registry.Image, o convert.Options, progress func(control.Progress)) (*registry.Source, error) {
	blob := func(i int) string { return filepath.Join(dir, fmt.Sprint(i)) }
	made, err := convert.ImageOf(ctx, convert.Source{
		Manifest: img.Manifest, Config: img.RawConfig,
		Open: func(ctx context.Context, l ocispec.Descriptor) (io.ReadCloser, error) {
			r, err := img.Stream(ctx, l)
			if err != nil {
				return nil, err
			}
			return &reported{ReadCloser: registry.Verify(r, l), desc: l, progress: progress}, nil
		},
		Create: func(i int, _ ocispec.Descriptor) (io.WriteCloser, error) { return os.Create(blob(i)) },
	}, o)
	if err != nil {
		return nil, err
	}
	src := &registry.Source{Root: registry.Document{Desc: made.Desc, Raw: made.Manifest}}
	var m ocispec.Manifest
	if err := json.Unmarshal(made.Manifest, &m); err != nil {
		return nil, err
	}
	src.Blobs = append(src.Blobs, registry.BytesBlob(m.Config, made.Config))
	for i, l := range made.Layers {
		src.Blobs = append(src.Blobs, registry.SourceBlob{Desc: l.Desc,
			Open: func(context.Context) (io.ReadCloser, error) { return os.Open(blob(i)) }})
	}
	return src, nil
}

// reported is a layer that is being converted.
type reported struct {
	io.ReadCloser
	desc     ocispec.Descriptor
	off      int64
	told     int64
	progress func(control.Progress)
}

// reportEvery is how many bytes lie between two events.
const reportEvery = 256 << 10

func (r *reported) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.off += int64(n)
	if done := err == io.EOF; done || r.off-r.told >= reportEvery {
		r.told = r.off
		r.progress(control.Progress{ID: short(r.desc.Digest), Action: "converting", Off: r.off, Size: r.desc.Size, Done: done})
	}
	return n, err
}
