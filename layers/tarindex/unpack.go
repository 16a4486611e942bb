package tarindex

import (
	"context"
	"errors"
	"fmt"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/objects"
)

// An unpacker is the last stage: it stores the files of an archive and gathers
// its entries.
type unpacker struct {
	ctx   context.Context // of the call
	store *objects.Store
	scan  scanner
	pack  string // name for the pack
	left  int64  // bytes of files that may still come

	small   *objects.Pack // made when the first small file comes
	file    *objects.Writer
	scratch [objects.MaxPacked]byte
	entries []layers.Entry
	cuts    cutter
}

// packName names the pack of a layer, for whoever looks into the store.
func packName(desc ocispec.Descriptor) string {
	hex := desc.Digest.Encoded()
	return hex[:min(len(hex), 16)]
}

// all reads the archive to its end.
func (u *unpacker) all() error {
	var h header
	for {
		err := u.scan.header(&h)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return u.at(err)
		}
		if err := u.member(&h); err != nil {
			return u.at(err)
		}
	}
}

// at says behind which entry an error came, if it is about the archive.
func (u *unpacker) at(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) { // the store's errors are others
		err = fmt.Errorf("tar: %w: %w", err, layers.ErrBadLayer)
	}
	if !isContent(err) || len(u.entries) == 0 {
		return err
	}
	return fmt.Errorf("after %q: %w", u.entries[len(u.entries)-1].Name, err)
}

func (u *unpacker) member(h *header) error {
	e, skip, err := h.entry()
	if err != nil {
		return err
	}
	if skip || e.Kind != layers.Reg {
		if skip {
			err = u.scan.skip(h.dataSize())
		} else {
			err = u.add(e)
		}
	} else {
		err = u.regular(h, e)
	}
	if err != nil {
		return err
	}
	return u.scan.padding(h.dataSize())
}

func (u *unpacker) add(e layers.Entry) error {
	if len(u.entries) >= layers.MaxEntries {
		return fmt.Errorf("more than %d entries: %w", layers.MaxEntries, layers.ErrTooLarge)
	}
	u.entries = append(u.entries, e)
	return nil
}

// regular stores a file.
func (u *unpacker) regular(h *header, e layers.Entry) (err error) {
	if u.left -= e.Size; u.left < 0 {
		return fmt.Errorf("%s: more plain bytes than a layer of its size may have: %w", e.Name, layers.ErrTooLarge)
	}
	off := u.scan.off()
	switch {
	case e.Size == 0:
		err = u.scan.skip(h.size)
	case h.sparse != nil:
		e.Object, err = u.sparse(h)
	case e.Size <= objects.MaxPacked:
		e.Object, err = u.packed(e.Size)
	default:
		e.Object, err = u.large(e.Size)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", e.Name, err)
	}
	if e.Size > 0 && e.Size <= layers.ChunkSize && h.sparse == nil {
		u.cuts.whole(e.Object, e.Size, off)
	}
	e.Chunks = u.cuts.take()
	return u.add(e)
}

// packed stores a small file.
func (u *unpacker) packed(size int64) (sum layers.Sum, err error) {
	data, err := u.scan.chunk(size)
	if err != nil {
		return sum, err
	}
	if int64(len(data)) < size { // it goes on in the next buffer
		n := copy(u.scratch[:], data)
		data = u.scratch[:size]
		if err := u.scan.full(data[n:]); err != nil {
			return sum, err
		}
	}
	if u.small == nil {
		if u.small, err = u.store.NewPack(u.pack); err != nil {
			return sum, err
		}
	}
	return u.small.Add(data)
}

// large stores a file as an object of its own.
func (u *unpacker) large(size int64) (sum layers.Sum, err error) {
	if u.file, err = u.store.Create(); err != nil {
		return sum, err
	}
	off := u.scan.off()
	if size <= layers.ChunkSize { // its sum is that of its chunk
		if err := u.copy(size, nil); err != nil {
			return sum, err
		}
		return u.commit()
	}
	if err := u.copy(layers.ChunkSize, nil); err != nil {
		return sum, err
	}
	u.cuts.whole(u.file.Sum(), layers.ChunkSize, off) // which need not be summed up again
	if err := u.copy(size-layers.ChunkSize, &u.cuts); err != nil {
		return sum, err
	}
	return u.commit()
}

// copy writes the next n bytes to the file, and cuts them if cuts is not nil.
func (u *unpacker) copy(n int64, cuts *cutter) error {
	if cuts != nil {
		cuts.begin(u.scan.off(), n)
	}
	for n > 0 {
		data, err := u.scan.chunk(n)
		if err != nil {
			return err
		}
		if _, err := u.file.Write(data); err != nil {
			return err
		}
		if cuts != nil {
			if err := cuts.data(data); err != nil {
				return err
			}
		}
		n -= int64(len(data))
	}
	return nil
}

func (u *unpacker) commit() (layers.Sum, error) {
	file := u.file
	u.file = nil
	return file.Commit(nil)
}

// sparse stores a file of which the archive has only what is not a hole.
func (u *unpacker) sparse(h *header) (sum layers.Sum, err error) {
	if u.file, err = u.store.Create(); err != nil {
		return sum, err
	}
	var off int64
	for _, sp := range h.sparse {
		if err := u.hole(sp.off - off); err != nil {
			return sum, err
		}
		if err := u.copy(sp.n, &u.cuts); err != nil {
			return sum, err
		}
		off = sp.off + sp.n
	}
	if err := u.hole(h.real - off); err != nil {
		return sum, err
	}
	return u.commit()
}

// zeros are written for holes; the store makes holes of them again.
var zeros [64 << 10]byte

func (u *unpacker) hole(n int64) error {
	u.cuts.hole(n)
	for n > 0 {
		p := zeros[:min(n, int64(len(zeros)))]
		if _, err := u.file.Write(p); err != nil {
			return err
		}
		n -= int64(len(p))
		if err := u.ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// finish makes what was stored last readable and returns the index, with the sums
// of what was given to be summed up. Its files have chunks if ok.
func (u *unpacker) finish(sums []layers.Sum) (ix *layers.Index, ok bool, err error) {
	u.cuts.finish(sums)
	entries, err := settle(u.entries)
	if err != nil {
		return nil, false, err
	}
	if pack := u.small; pack != nil {
		u.small = nil
		if err := pack.Commit(); err != nil {
			return nil, false, err
		}
	}
	if u.cuts.full {
		for i := range entries {
			entries[i].Chunks = nil
		}
	}
	return &layers.Index{Entries: entries}, !u.cuts.full, nil
}

// abort drops what is begun. After finish there is nothing.
func (u *unpacker) abort() (err error) {
	if u.file != nil {
		err = u.file.Abort()
	}
	if u.small != nil {
		err = errors.Join(err, u.small.Abort())
	}
	return err
}
