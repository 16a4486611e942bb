package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/events"
	"github.com/snapfs/snapfs/layers/index"
	"github.com/snapfs/snapfs/layers/indexfile"
	"github.com/snapfs/snapfs/layers/lazy"
	"github.com/snapfs/snapfs/layers/registry"
	"github.com/snapfs/snapfs/layers/trust"
)

// MakeIndex makes the index of an image, which is brought in if it is not known,
// and publishes it if a.Push says so.
func (s *Service) MakeIndex(ctx context.Context, a control.IndexArgs, progress func(control.Progress)) (control.IndexInfo, error) {
	k, err := s.Pull(ctx, control.PullArgs{Ref: a.Ref, Platform: a.Platform, Policy: PullMissing}, progress)
	if err != nil {
		return control.IndexInfo{}, err
	}
	if err := k.startable(); err != nil {
		return control.IndexInfo{}, err
	}
	made, err := s.makeIndex(ctx, k, progress)
	if err != nil {
		return control.IndexInfo{}, fmt.Errorf("index of %s: %w", familiar(k.Ref), err)
	}
	defer made.discard()
	if a.Push {
		if err := s.publish(ctx, made, progress); err != nil {
			return control.IndexInfo{}, err
		}
	}
	return made.info(), nil
}

// A madeIndex is an index in files, which go with discard.
type madeIndex struct {
	dir     string
	k       *Known
	at      time.Time
	ann     index.Annotations
	layers  []control.IndexLayer
	files   int64
	blobs   int64
	profile *index.Profile
	desc    ocispec.Descriptor // of the artifact manifest, when it was published
}

func (m *madeIndex) discard()           { os.RemoveAll(m.dir) }
func (m *madeIndex) indexFile() string  { return filepath.Join(m.dir, "index") }
func (m *madeIndex) bundleFile() string { return filepath.Join(m.dir, "bundle") }

func (m *madeIndex) info() control.IndexInfo {
	i := annInfo(m.k.Ref, m.k.Desc.Digest, m.ann)
	i.Created, i.Files, i.Blobs, i.Layers, i.Profile = m.at, m.files, m.blobs, m.layers, profileInfo(m.profile)
	i.Believed = true
	if m.desc.Digest != "" {
		i.Digest = string(m.desc.Digest)
	}
	return i
}

func annInfo(ref string, manifest digest.Digest, a index.Annotations) control.IndexInfo {
	return control.IndexInfo{
		Ref: familiar(ref), Manifest: string(manifest), Root: a.Root.String(),
		Blob: string(a.Index.Digest), Size: a.Index.Size, Prefix: a.Prefix,
		BundleBlob: string(a.Bundle.Digest), Bundle: a.Bundle.Size,
	}
}

// makeIndex writes the index of an image, and its boot bundle if it has a profile.
func (s *Service) makeIndex(ctx context.Context, k *Known, progress func(control.Progress)) (_ *madeIndex, err error) {
	progress(control.Progress{Action: "indexing"})
	dir, err := os.MkdirTemp(filepath.Join(s.Root, "tmp"), "index-")
	if err != nil {
		return nil, err
	}
	m := &madeIndex{dir: dir, k: k, at: time.Now().UTC().Truncate(time.Second), profile: s.profile(k.Desc.Digest)}
	defer func() {
		if err != nil {
			m.discard()
		}
	}()
	im := &index.Image{Manifest: k.Desc.Digest, Profile: m.profile}
	for _, key := range k.Layers {
		l, done, err := s.indexed(key)
		if err != nil {
			return nil, err
		}
		defer done()
		im.Layers = append(im.Layers, *l)
		m.layers = append(m.layers, layerInfo(l))
		if l.Mapped() {
			m.files += int64(len(l.Index.Entries))
			m.blobs += l.Desc.Size
		}
	}
	info, err := index.Write(ctx, m.indexFile(), im)
	if err != nil {
		return nil, err
	}
	m.ann = info.Annotations()
	if m.profile != nil {
		if m.ann.Bundle, err = s.makeBundle(ctx, k, m); err != nil {
			return nil, fmt.Errorf("boot bundle: %w", err)
		}
	}
	progress(control.Progress{Action: "indexing", Done: true})
	return m, nil
}

func layerInfo(l *index.Layer) control.IndexLayer {
	i := control.IndexLayer{Digest: string(l.Desc.Digest), Size: l.Desc.Size, Why: l.Reason}
	if l.Mapped() {
		i.Format, i.Points = tarFormat(l.Map.Compression), len(l.Map.Points)
	}
	return i
}

// indexed opens what an index says of a layer. done is called when it was written.
func (s *Service) indexed(key string) (l *index.Layer, done func(), err error) {
	var row layerRow
	if err := s.db.View(func(tx *bolt.Tx) error { return get(tx, "layers", key, &row) }); err != nil {
		return nil, nil, err
	}
	l = &index.Layer{
		Desc:   ocispec.Descriptor{MediaType: row.Desc.MediaType, Digest: row.Desc.Digest, Size: row.Desc.Size},
		DiffID: row.DiffID,
	}
	if !row.Mapped {
		l.Reason = unmapped(&row)
		return l, func() {}, nil
	}
	ref, err := registry.ParseRef(row.Source)
	if err != nil {
		return nil, nil, err
	}
	maps, err := s.openMap(key, ref)
	if err != nil {
		return nil, nil, err
	}
	f, err := indexfile.Open(s.indexPath(key))
	if err != nil {
		return nil, nil, errors.Join(err, maps.Close())
	}
	l.Index, err = f.Index()
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, nil, errors.Join(err, maps.Close())
	}
	l.Map, l.Windows = maps.Map(), maps
	return l, func() { maps.Close() }, nil
}

// unmapped says why a layer cannot be read by a map.
func unmapped(row *layerRow) string {
	why := row.Why
	switch {
	case row.Format == lazy.EStargz || row.Format == lazy.ZstdChunked:
		why = "it has a table of contents of its own: " + row.Format
	case row.Origin == OriginSOCI:
		why = "it is read by SOCI's index until all of it is here"
	case why == "":
		why = "it was unpacked by an earlier version"
	}
	return strings.ToValidUTF8(why[:min(len(why), index.MaxReason)], "")
}

// makeBundle writes the chunks of the profile, in order of use.
func (s *Service) makeBundle(ctx context.Context, k *Known, m *madeIndex) (index.Blob, error) {
	f, err := os.Create(m.bundleFile())
	if err != nil {
		return index.Blob{}, err
	}
	defer f.Close()
	sum := digest.SHA256.Digester()
	var n counter
	var buf []byte
	_, err = index.WriteBundle(ctx, io.MultiWriter(f, sum.Hash(), &n), m.profile, func(ctx context.Context, it index.Item) ([]byte, error) {
		buf = append(buf[:0], make([]byte, it.Size)...)
		if _, err := s.Fetcher.ReadAt(ctx, it.Object, buf, it.Off); err != nil && err != io.EOF {
			s.Log.Warn("left out of the boot bundle", "ref", k.Ref, "object", it.Object, "off", it.Off, "err", err)
			return nil, ctx.Err()
		}
		return buf, nil
	})
	return index.Blob{Digest: sum.Digest(), Size: int64(n)}, errors.Join(err, f.Close())
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// publish pushes an index beside its image, and takes the list's earlier ones of
// ours away. It is signed by the daemon's key, if it has one.
func (s *Service) publish(ctx context.Context, m *madeIndex, progress func(control.Progress)) (err error) {
	if s.Indexes.Sign != nil {
		if m.ann.Envelope, err = m.sign(*s.Indexes.Sign); err != nil {
			return err
		}
	}
	blobs := []registry.SourceBlob{fileBlob(index.MediaTypeIndex, m.ann.Index, m.indexFile())}
	if m.ann.Bundle.Size > 0 {
		blobs = append(blobs, fileBlob(index.MediaTypeBundle, m.ann.Bundle, m.bundleFile()))
	}
	return s.refer(ctx, m, blobs, progress)
}

func (m *madeIndex) sign(key trust.PrivateKey) (string, error) {
	return trust.Sign(trust.StatementOf(m.k.Desc.Digest, m.ann, m.at), key)
}

func (s *Service) refer(ctx context.Context, m *madeIndex, blobs []registry.SourceBlob, progress func(control.Progress)) error {
	ref, err := registry.ParseRef(m.k.Source)
	if err != nil {
		return err
	}
	ann := m.ann.Encode()
	ann[ocispec.AnnotationCreated] = m.at.Format(time.RFC3339)
	m.desc, err = s.Registry.PushReferrer(ctx, ref, registry.Referrer{
		Subject: m.k.Desc, ArtifactType: index.ArtifactType, Blobs: blobs, Annotations: ann,
		Replace: func(old ocispec.Descriptor) bool { return s.replaces(m, old) },
	}, pushing(progress))
	if err != nil {
		return err
	}
	s.event(events.Publish, m.k.Ref, "digest", m.desc.Digest, "size", m.ann.Index.Size, "bundle", m.ann.Bundle.Size)
	return nil
}

// replaces says whether an index of ours takes the place of an older one: not
// if that is signed and this is not.
func (s *Service) replaces(m *madeIndex, old ocispec.Descriptor) bool {
	a, err := index.DecodeAnnotations(old.Annotations)
	return err == nil && (a.Envelope == "" || m.ann.Envelope != "")
}

func fileBlob(mediaType string, b index.Blob, path string) registry.SourceBlob {
	return registry.SourceBlob{Desc: blobDesc(mediaType, b), Open: func(context.Context) (io.ReadCloser, error) { return os.Open(path) }}
}

// ListIndexes lists the indexes that were published for an image, known or not.
func (s *Service) ListIndexes(ctx context.Context, a control.IndexListArgs) ([]control.IndexInfo, error) {
	keys := s.Indexes.Keys
	if len(a.Keys) > 0 {
		var err error
		if keys, err = trust.LoadPublic(a.Keys...); err != nil {
			return nil, err
		}
	}
	ref, manifest, err := s.manifestOf(ctx, a.Ref)
	if err != nil {
		return nil, err
	}
	all, err := s.find(ctx, ref, manifest.Digest, keys)
	list := []control.IndexInfo{}
	for _, p := range all {
		list = append(list, p.info(ref, manifest.Digest))
	}
	return list, err
}

func (p *published) info(ref registry.Ref, manifest digest.Digest) control.IndexInfo {
	i := annInfo(ref.String(), manifest, p.ann)
	i.Digest, i.Created, i.Signer, i.Believed = string(p.desc.Digest), p.created(), p.signer, p.why == nil
	if p.unsigned != nil {
		i.Unsigned = p.unsigned.Error()
	}
	if p.why != nil {
		i.Why = p.why.Error()
	}
	return i
}

// manifestOf finds where an image is from and its manifest: from the book, or from its registry.
func (s *Service) manifestOf(ctx context.Context, name string) (registry.Ref, ocispec.Descriptor, error) {
	if k, err := s.Get(name); err == nil {
		ref, err := registry.ParseRef(k.Source)
		return ref, k.Desc, err
	}
	ref, err := registry.ParseRef(name)
	if err != nil {
		return ref, ocispec.Descriptor{}, err
	}
	img, err := s.Registry.Resolve(ctx, ref, "")
	if err != nil {
		return ref, ocispec.Descriptor{}, err
	}
	return ref, img.Desc, nil
}

// SignIndex signs the newest index that is published for an image, and publishes it anew.
func (s *Service) SignIndex(ctx context.Context, a control.IndexSignArgs) (control.IndexInfo, error) {
	key, err := trust.LoadPrivate(a.Key)
	if err != nil {
		return control.IndexInfo{}, err
	}
	ref, manifest, err := s.manifestOf(ctx, a.Ref)
	if err != nil {
		return control.IndexInfo{}, err
	}
	all, err := s.find(ctx, ref, manifest.Digest, nil)
	if err != nil {
		return control.IndexInfo{}, err
	}
	var newest *published
	for _, p := range all {
		if p.ann.Prefix > 0 && (newest == nil || p.created().After(newest.created())) {
			newest = p
		}
	}
	if newest == nil {
		return control.IndexInfo{}, &control.Error{Code: control.CodeNotFound, Message: "no index is published for " + ref.Familiar()}
	}
	return s.signed(ctx, ref, manifest, newest, key)
}

func (s *Service) signed(ctx context.Context, ref registry.Ref, manifest ocispec.Descriptor, p *published, key trust.PrivateKey) (control.IndexInfo, error) {
	art, err := s.Registry.Artifact(ctx, ref, p.desc, manifest.Digest)
	if err != nil {
		return control.IndexInfo{}, err
	}
	m := &madeIndex{at: time.Now().UTC().Truncate(time.Second)}
	m.k = &Known{Ref: ref.String(), manifestRow: manifestRow{Source: ref.String(), Desc: manifest}}
	if m.ann, err = index.DecodeAnnotations(art.Desc.Annotations); err != nil { // of the manifest, not of the list
		return control.IndexInfo{}, err
	}
	if m.ann.Envelope, err = m.sign(key); err != nil {
		return control.IndexInfo{}, err
	}
	var blobs []registry.SourceBlob
	for _, d := range art.Manifest.Layers { // they are there: nothing is transferred
		blobs = append(blobs, registry.SourceBlob{Desc: d, Open: func(ctx context.Context) (io.ReadCloser, error) {
			return s.Registry.Stream(ctx, ref, d)
		}})
	}
	if err := s.refer(ctx, m, blobs, func(control.Progress) {}); err != nil {
		return control.IndexInfo{}, err
	}
	out := &published{desc: m.desc, ann: m.ann, signer: key.Public().ID()}
	_, out.unsigned = signer(manifest.Digest, m.ann, s.Indexes.Keys)
	out.why = s.believe(out)
	i := out.info(ref, manifest.Digest)
	i.Created, i.Unsigned = m.at, ""
	return i, nil
}

// Keygen makes a key pair in files that must not be there yet.
func Keygen(a control.KeygenArgs) (control.Key, error) {
	key, err := trust.Generate()
	if err != nil {
		return control.Key{}, err
	}
	out := control.Key{ID: key.Public().ID(), Private: a.Path, Public: a.Path + ".pub"}
	if err := trust.SavePrivate(out.Private, key); err != nil {
		return control.Key{}, err
	}
	if err := trust.SavePublic(out.Public, key.Public()); err != nil {
		return control.Key{}, errors.Join(err, os.Remove(out.Private))
	}
	return out, nil
}

// publishSoon publishes the index of an image in the background, if the daemon is configured to.
func (s *Service) publishSoon(row *manifestRow) {
	if ref, err := registry.ParseRef(row.Source); err != nil || !ref.IsRemote() || !s.Indexes.Publish || s.base.Err() != nil {
		return
	}
	if slices.ContainsFunc(row.Layers, isAliased) { // when all of it is here
		return
	}
	k := &Known{Ref: row.Source, manifestRow: *row}
	s.background.Go(func() {
		m, err := s.makeIndex(s.base, k, func(control.Progress) {})
		if err == nil {
			defer m.discard()
			err = s.publish(s.base, m, func(control.Progress) {})
		}
		if err != nil && s.base.Err() == nil {
			s.Log.Warn("index is not published", "ref", k.Ref, "err", err)
		}
	})
}
