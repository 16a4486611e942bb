package toc

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"testing"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/layerstest"
)

func FuzzTOC(f *testing.F) {
	f.Add([]byte(digests.Replace(entriesDoc(
		`{"name":"./d","type":"dir","mode":493,"uid":1,"gid":2,"modtime":"2024-05-01T00:00:00Z","xattrs":{"user.a":"AAAA"},"userName":"root"}`,
		`{"name":"d/f","type":"reg","size":5,"offset":10,"digest":=A,"chunkDigest":=B,"chunkSize":3}`,
		`{"name":"d/f","type":"chunk","offset":20,"chunkOffset":3,"chunkDigest":=C}`,
		`{"name":"g","type":"reg","size":5,"offset":30,"innerOffset":100,"digest":=A}`,
		`{"name":"s","type":"symlink","linkName":"x\n\u00e9"}`, `{"name":"c","type":"char","devMajor":1,"devMinor":3}`))))
	f.Add([]byte(digests.Replace(entriesDoc(
		`{"type":"reg","name":"z","size":9,"offset":10,"endOffset":40,"digest":=A,"chunkDigest":=B,"chunkSize":3,"chunkType":"zeros","modtime":"2024-05-01T00:00:00.123456789+02:00"}`,
		`{"type":"chunk","name":"z","offset":20,"chunkOffset":3,"chunkSize":6,"chunkDigest":=C}`, `{"type":"hardlink","name":"h","linkName":"z"}`))))
	f.Add([]byte(`{"entries":null,"x":[[{"y":-1.5e+3}],true,false,"\ud83d\ude00"],"version":1}`))
	f.Fuzz(func(t *testing.T, p []byte) {
		const end = 1 << 20
		ix, err := Decode(bytes.NewReader(p), Options{Compression: layers.Zstd, End: end, Size: int64(len(p))})
		if err != nil {
			if !errors.Is(err, fs.ErrInvalid) && !errors.Is(err, layers.ErrNoTOC) {
				t.Errorf("Decode = %v, which is no error of a document", err)
			}
			return
		}
		layerstest.Index(t, ix, end)
		if bytes.ContainsFunc(p, func(r rune) bool { return r < ' ' }) {
			return // encoding/json refuses these in strings
		}
		if !json.Valid(p) {
			t.Errorf("Decode takes what is not JSON: %q", p)
		}
	})
}
