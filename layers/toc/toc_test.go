package toc

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/decode"
)

func sumOf(s string) layers.Sum { return layers.SumOf([]byte(s)) }

// Digests for documents written by hand: A is that of "a", and so on.
var digests = strings.NewReplacer("=A", `"`+sumOf("a").String()+`"`, "=B", `"`+sumOf("b").String()+`"`, "=C", `"`+sumOf("c").String()+`"`)

// parse decodes a document whose stored chunks end at 1000. Digests are =A, =B, =C.
func parse(doc string) (*layers.Index, error) {
	return Decode(strings.NewReader(digests.Replace(doc)), Options{Compression: layers.Gzip, End: 1000})
}

func entriesDoc(entries ...string) string {
	return `{"version":1,"entries":[` + strings.Join(entries, ",") + `]}`
}

func TestDecode(t *testing.T) {
	a, b, c := sumOf("a"), sumOf("b"), sumOf("c")
	for _, tc := range []struct {
		name string
		doc  string
		want []layers.Entry
	}{
		{"nothing", `{}`, nil},
		{"null", `{"version":1,"entries":null}`, nil},
		{"empty", " {\n\t\"version\" : 1 , \"entries\" : [ ] } \n", nil},
		{"other keys", `{"entries":[{"name":"a","type":"dir","x":[{"y":[1.5e3,true,false,null,"\u00e9\"]}"]},[]],"userName":"root"}],"version":1,"tarSplitDigest":"x","more":{"a":{}}}`,
			[]layers.Entry{{Name: "a", Kind: layers.Dir}}},
		{"names", entriesDoc(`{"name":"./a//b/./c/","type":"dir"}`, `{"name":"/","type":"dir"}`, `{"name":"/etc","type":"dir"}`),
			[]layers.Entry{{Name: "a/b/c", Kind: layers.Dir}, {Kind: layers.Dir}, {Name: "etc", Kind: layers.Dir}}},
		{"escapes", entriesDoc(`{"name":"a\/\"\\\b\f\n\r\t\u00e9\u20AC\ud83d\ude00","type":"fifo"}`),
			[]layers.Entry{{Name: "a/\"\\\b\f\n\r\té€😀", Kind: layers.Fifo}}},
		{"not UTF-8", entriesDoc("{\"name\":\"caf\xe9\\n\xff\",\"type\":\"fifo\"}", "{\"name\":\"caf\xe8\ufffd\",\"type\":\"fifo\"}"),
			[]layers.Entry{{Name: "caf\xe9\n\xff", Kind: layers.Fifo}, {Name: "caf\xe8\ufffd", Kind: layers.Fifo}}},
		{"kinds", entriesDoc(`{"name":"s","type":"symlink","linkName":"/../x"}`, `{"name":"h","type":"hardlink","linkName":"./s"}`,
			`{"name":"c","type":"char","devMajor":4294967295,"devMinor":1}`, `{"name":"b","type":"block","devMajor":8}`),
			[]layers.Entry{{Name: "s", Kind: layers.Symlink, Link: "/../x"}, {Name: "h", Kind: layers.Hardlink, Link: "s"},
				{Name: "c", Kind: layers.Char, Major: 1<<32 - 1, Minor: 1}, {Name: "b", Kind: layers.Block, Major: 8}}},
		{"metadata", entriesDoc(`{"name":"d","type":"dir","mode":33279,"uid":4294967295,"gid":5,"modtime":"2024-02-29T23:59:59.5+02:00","xattrs":{"user.b":"AP8=","user.a":""}}`),
			[]layers.Entry{{Name: "d", Kind: layers.Dir, Mode: 0o777, UID: 1<<32 - 1, GID: 5, Sec: 1709243999, Nsec: 5e8,
				Xattrs: []layers.Xattr{{Name: "user.a"}, {Name: "user.b", Value: "\x00\xff"}}}}},
		{"nulls", entriesDoc(`{"name":"d","type":"dir","mode":null,"modtime":null,"xattrs":null,"digest":null,"linkName":null}`),
			[]layers.Entry{{Name: "d", Kind: layers.Dir}}},
		{"one chunk", entriesDoc(`{"name":"f","type":"reg","size":5,"offset":10,"digest":=A,"chunkDigest":=A}`, `{"name":"g","type":"reg","size":6,"offset":20,"digest":=B}`,
			`{"name":"h","type":"reg","size":6,"offset":30,"chunkDigest":=C,"chunkSize":6}`),
			[]layers.Entry{
				{Name: "f", Kind: layers.Reg, Size: 5, Object: a, Chunks: []layers.Chunk{{Sum: a, Size: 5, BlobOff: 10, BlobLen: 10}}},
				{Name: "g", Kind: layers.Reg, Size: 6, Object: b, Chunks: []layers.Chunk{{Sum: b, Size: 6, BlobOff: 20, BlobLen: 10}}},
				{Name: "h", Kind: layers.Reg, Size: 6, Object: c, Chunks: []layers.Chunk{{Sum: c, Size: 6, BlobOff: 30, BlobLen: 970}}}}},
		{"chunks", entriesDoc(`{"name":"f","type":"reg","size":5,"offset":10,"digest":=A,"chunkDigest":=B,"chunkSize":3}`, `{"name":"./f","type":"chunk","offset":20,"chunkOffset":3,"chunkSize":1,"chunkDigest":=C}`,
			`{"name":"","type":"chunk","offset":25,"chunkOffset":4,"chunkDigest":=C}`),
			[]layers.Entry{{Name: "f", Kind: layers.Reg, Size: 5, Object: a, Chunks: []layers.Chunk{
				{Sum: b, Size: 3, BlobOff: 10, BlobLen: 10}, {Sum: c, Off: 3, Size: 1, BlobOff: 20, BlobLen: 5}, {Sum: c, Off: 4, Size: 1, BlobOff: 25, BlobLen: 975}}}}},
		{"a shared run", entriesDoc(`{"name":"f","type":"reg","size":5,"offset":10,"digest":=A}`, `{"name":"g","type":"reg","size":5,"offset":10,"innerOffset":512,"digest":=B}`,
			`{"name":"h","type":"reg","size":5,"offset":50,"digest":=C}`),
			[]layers.Entry{
				{Name: "f", Kind: layers.Reg, Size: 5, Object: a, Chunks: []layers.Chunk{{Sum: a, Size: 5, BlobOff: 10, BlobLen: 40}}},
				{Name: "g", Kind: layers.Reg, Size: 5, Object: b, Chunks: []layers.Chunk{{Sum: b, Size: 5, BlobOff: 10, BlobLen: 40, Inner: 512}}},
				{Name: "h", Kind: layers.Reg, Size: 5, Object: c, Chunks: []layers.Chunk{{Sum: c, Size: 5, BlobOff: 50, BlobLen: 950}}}}},
		{"any order", entriesDoc(`{"name":"f","type":"reg","size":5,"offset":50,"digest":=A}`, `{"name":"g","type":"reg","size":5,"offset":10,"digest":=B}`),
			[]layers.Entry{
				{Name: "f", Kind: layers.Reg, Size: 5, Object: a, Chunks: []layers.Chunk{{Sum: a, Size: 5, BlobOff: 50, BlobLen: 950}}},
				{Name: "g", Kind: layers.Reg, Size: 5, Object: b, Chunks: []layers.Chunk{{Sum: b, Size: 5, BlobOff: 10, BlobLen: 40}}}}},
		{"ends", entriesDoc(`{"name":"f","type":"reg","size":5,"offset":10,"endOffset":20,"digest":=A}`, `{"name":"g","type":"reg","size":5,"offset":30,"endOffset":1000,"digest":=B}`),
			[]layers.Entry{
				{Name: "f", Kind: layers.Reg, Size: 5, Object: a, Chunks: []layers.Chunk{{Sum: a, Size: 5, BlobOff: 10, BlobLen: 10}}},
				{Name: "g", Kind: layers.Reg, Size: 5, Object: b, Chunks: []layers.Chunk{{Sum: b, Size: 5, BlobOff: 30, BlobLen: 970}}}}},
		{"zeros", entriesDoc(`{"name":"f","type":"reg","size":9,"offset":10,"endOffset":40,"digest":=A,"chunkDigest":=B,"chunkSize":3,"chunkType":"zeros"}`,
			`{"name":"f","type":"chunk","offset":20,"chunkOffset":3,"chunkSize":3,"chunkDigest":=C}`, `{"name":"f","type":"chunk","offset":30,"chunkOffset":6,"chunkSize":3,"chunkDigest":=B,"chunkType":"zeros"}`),
			[]layers.Entry{{Name: "f", Kind: layers.Reg, Size: 9, Object: a, Chunks: []layers.Chunk{
				{Sum: b, Size: 3, BlobOff: 10}, {Sum: c, Off: 3, Size: 3, BlobOff: 20, BlobLen: 980}, {Sum: b, Off: 6, Size: 3, BlobOff: 30}}}}},
		{"hidden files", entriesDoc(`{"name":".no.prefetch.landmark","type":"reg","size":1,"offset":5,"digest":=A}`, `{"name":"f","type":"reg","size":5,"offset":10,"digest":=A}`,
			`{"name":"./.prefetch.landmark","type":"reg","size":1,"offset":20,"digest":=B}`, `{"name":"a/.prefetch.landmark","type":"reg"}`, `{"name":"stargz.index.json","type":"reg"}`),
			[]layers.Entry{{Name: "f", Kind: layers.Reg, Size: 5, Object: a, Chunks: []layers.Chunk{{Sum: a, Size: 5, BlobOff: 10, BlobLen: 10}}},
				{Name: "a/.prefetch.landmark", Kind: layers.Reg}}},
	} {
		for _, how := range []string{"at once", "byte by byte"} {
			r := iotest.OneByteReader(strings.NewReader(digests.Replace(tc.doc)))
			if how == "at once" {
				r = strings.NewReader(digests.Replace(tc.doc))
			}
			ix, err := Decode(r, Options{Compression: layers.Gzip, End: 1000})
			if err != nil {
				t.Errorf("Decode(%s, %s) = %v", tc.name, how, err)
				continue
			}
			if diff := cmp.Diff(tc.want, ix.Entries); diff != "" {
				t.Errorf("Decode(%s, %s) (-want +got):\n%s", tc.name, how, diff)
			}
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	reg := func(more string) string { return `{"name":"f","type":"reg",` + more + `}` }
	long := strings.Repeat("n", 256)
	for name, tc := range map[string]struct {
		doc  string
		want error
	}{
		// The document.
		"nothing":         {"", layers.ErrBadTOC},
		"not an object":   {"[]", layers.ErrBadTOC},
		"cut":             {`{"version":1,"entries":[{"name":"a","type":"dir"}`, layers.ErrBadTOC},
		"cut in a string": {`{"version":1,"entries":[{"name":"a`, layers.ErrBadTOC},
		"more behind":     {`{"version":1,"entries":[]}{}`, layers.ErrBadTOC},
		"entries twice":   {`{"entries":[],"entries":[]}`, layers.ErrBadTOC},
		"entry no object": {entriesDoc(`"x"`), layers.ErrBadTOC},
		"no comma":        {entriesDoc(`{"name":"a","type":"dir"} {"name":"b","type":"dir"}`), layers.ErrBadTOC},
		"empty key":       {`{"":1}`, layers.ErrBadTOC},
		"bad escape":      {entriesDoc(`{"name":"\x","type":"dir"}`), layers.ErrBadTOC},
		"bad hex":         {entriesDoc(`{"name":"\u12g4","type":"dir"}`), layers.ErrBadTOC},
		"too deep":        {`{"x":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`, layers.ErrBadTOC},
		"name no string":  {entriesDoc(`{"name":5,"type":"dir"}`), layers.ErrBadTOC},
		"version 2":       {`{"version":2,"entries":[]}`, layers.ErrNoTOC},
		"huge entry":      {entriesDoc(`{"name":"` + strings.Repeat("x", maxAtom) + `","type":"dir"}`), layers.ErrTooLarge},
		// Names and links.
		"traversal":          {entriesDoc(`{"name":"a/../../b","type":"dir"}`), layers.ErrBadTOC},
		"dots":               {entriesDoc(`{"name":"..","type":"dir"}`), layers.ErrBadTOC},
		"NUL":                {entriesDoc(`{"name":"a\u0000b","type":"dir"}`), layers.ErrBadTOC},
		"long element":       {entriesDoc(`{"name":"` + long + `","type":"dir"}`), layers.ErrBadTOC},
		"long name":          {entriesDoc(`{"name":"` + strings.Repeat("a/", 2500) + `","type":"dir"}`), layers.ErrBadTOC},
		"lost name":          {entriesDoc(`{"name":"caf\ufffd","type":"dir"}`), layers.ErrNoTOC},
		"lost xattr":         {entriesDoc(`{"name":"a","type":"dir","xattrs":{"user.\ufffd":""}}`), layers.ErrNoTOC},
		"lost link":          {entriesDoc(`{"name":"a","type":"symlink","linkName":"\ufffd"}`), layers.ErrNoTOC},
		"half a pair":        {entriesDoc(`{"name":"\ud83dx","type":"dir"}`), layers.ErrNoTOC},
		"half a pair at end": {entriesDoc(`{"name":"\ud83d","type":"dir"}`), layers.ErrNoTOC},
		"root is a file":     {entriesDoc(`{"name":"./","type":"reg"}`), layers.ErrBadTOC},
		"link to nothing":    {entriesDoc(`{"name":"a","type":"symlink"}`), layers.ErrBadTOC},
		"link with NUL":      {entriesDoc(`{"name":"a","type":"symlink","linkName":"a\u0000"}`), layers.ErrBadTOC},
		"long link":          {entriesDoc(`{"name":"a","type":"symlink","linkName":"` + strings.Repeat("a", 4096) + `"}`), layers.ErrBadTOC},
		"link outside":       {entriesDoc(`{"name":"a","type":"hardlink","linkName":"../etc/passwd"}`), layers.ErrBadTOC},
		"link to the root":   {entriesDoc(`{"name":"a","type":"hardlink","linkName":"/"}`), layers.ErrBadTOC},
		"link to itself":     {entriesDoc(`{"name":"a","type":"hardlink","linkName":"./a"}`), layers.ErrBadTOC},
		// Metadata.
		"no type":        {entriesDoc(`{"name":"a"}`), layers.ErrBadTOC},
		"unknown type":   {entriesDoc(`{"name":"a","type":"socket"}`), layers.ErrBadTOC},
		"negative owner": {entriesDoc(`{"name":"a","type":"dir","uid":-1}`), layers.ErrBadTOC},
		"large owner":    {entriesDoc(`{"name":"a","type":"dir","gid":4294967296}`), layers.ErrBadTOC},
		"negative mode":  {entriesDoc(`{"name":"a","type":"dir","mode":-1}`), layers.ErrBadTOC},
		"half a mode":    {entriesDoc(`{"name":"a","type":"dir","mode":1.5}`), layers.ErrBadTOC},
		"mode of 2^64":   {entriesDoc(`{"name":"a","type":"dir","mode":18446744073709551616}`), layers.ErrBadTOC},
		"mode of 2^63":   {entriesDoc(`{"name":"a","type":"dir","mode":9223372036854775808}`), layers.ErrBadTOC},
		"large device":   {entriesDoc(`{"name":"a","type":"char","devMajor":4294967296}`), layers.ErrBadTOC},
		"time":           {entriesDoc(`{"name":"a","type":"dir","modtime":"yesterday"}`), layers.ErrBadTOC},
		"February 30":    {entriesDoc(`{"name":"a","type":"dir","modtime":"2024-02-30T00:00:00Z"}`), layers.ErrBadTOC},
		"xattr base64":   {entriesDoc(`{"name":"a","type":"dir","xattrs":{"user.a":"!"}}`), layers.ErrBadTOC},
		"xattr twice":    {entriesDoc(`{"name":"a","type":"dir","xattrs":{"user.a":"","user.a":""}}`), layers.ErrBadTOC},
		"xattrs twice":   {entriesDoc(`{"name":"a","type":"dir","xattrs":{"user.a":""},"xattrs":{"user.b":""}}`), layers.ErrBadTOC},
		"xattr no name":  {entriesDoc(`{"name":"a","type":"dir","xattrs":{"":""}}`), layers.ErrBadTOC},
		"xattr NUL":      {entriesDoc(`{"name":"a","type":"dir","xattrs":{"user.\u0000":""}}`), layers.ErrBadTOC},
		"xattr name":     {entriesDoc(`{"name":"a","type":"dir","xattrs":{"` + long + `":""}}`), layers.ErrBadTOC},
		"xattr value":    {entriesDoc(`{"name":"a","type":"dir","xattrs":{"user.a":"` + strings.Repeat("AAAA", 22000) + `"}}`), layers.ErrBadTOC},
		"xattr bomb":     {entriesDoc(`{"name":"a","type":"dir","xattrs":{` + bombXattrs() + `}}`), layers.ErrTooLarge},
		// Sizes and chunks.
		"negative size":     {entriesDoc(reg(`"size":-5,"offset":1,"digest":=A`)), layers.ErrBadTOC},
		"huge size":         {entriesDoc(reg(`"size":1125899906842625,"offset":1,"digest":=A`)), layers.ErrTooLarge},
		"huge chunk":        {entriesDoc(reg(`"size":67108865,"offset":1,"digest":=A`)), layers.ErrTooLarge},
		"no digest":         {entriesDoc(reg(`"size":5,"offset":1`)), layers.ErrBadTOC},
		"empty digest":      {entriesDoc(reg(`"size":5,"offset":1,"digest":""`)), layers.ErrBadTOC},
		"md5":               {entriesDoc(reg(`"size":5,"offset":1,"digest":"md5:d41d8cd98f00b204e9800998ecf8427e"`)), layers.ErrBadTOC},
		"bad hex digest":    {entriesDoc(reg(`"size":5,"offset":1,"digest":"sha256:` + strings.Repeat("g", 64) + `"`)), layers.ErrBadTOC},
		"digests differ":    {entriesDoc(reg(`"size":5,"offset":1,"digest":=A,"chunkDigest":=B`)), layers.ErrBadTOC},
		"chunk no digest":   {entriesDoc(reg(`"size":5,"offset":1,"digest":=A,"chunkDigest":=B,"chunkSize":3`), `{"type":"chunk","offset":2,"chunkOffset":3}`), layers.ErrBadTOC},
		"first no digest":   {entriesDoc(reg(`"size":5,"offset":1,"digest":=A,"chunkSize":3`), `{"type":"chunk","offset":2,"chunkOffset":3,"chunkDigest":=B}`), layers.ErrBadTOC},
		"file no digest":    {entriesDoc(reg(`"size":5,"offset":1,"chunkDigest":=A,"chunkSize":3`), `{"type":"chunk","offset":2,"chunkOffset":3,"chunkDigest":=B}`), layers.ErrBadTOC},
		"gap":               {entriesDoc(reg(`"size":5,"offset":1,"digest":=A,"chunkDigest":=B,"chunkSize":2`), `{"type":"chunk","offset":2,"chunkOffset":3,"chunkDigest":=B}`), layers.ErrBadTOC},
		"overlap":           {entriesDoc(reg(`"size":5,"offset":1,"digest":=A,"chunkDigest":=B,"chunkSize":4`), `{"type":"chunk","offset":2,"chunkOffset":3,"chunkDigest":=B}`), layers.ErrBadTOC},
		"short":             {entriesDoc(reg(`"size":5,"offset":1,"digest":=A,"chunkDigest":=B,"chunkSize":4`)), layers.ErrBadTOC},
		"short, then more":  {entriesDoc(reg(`"size":5,"offset":1,"digest":=A,"chunkDigest":=B,"chunkSize":4`), `{"name":"b","type":"dir"}`), layers.ErrBadTOC},
		"long":              {entriesDoc(reg(`"size":5,"offset":1,"digest":=A,"chunkSize":6`)), layers.ErrBadTOC},
		"negative chunk":    {entriesDoc(reg(`"size":5,"offset":1,"digest":=A,"chunkSize":-1`)), layers.ErrBadTOC},
		"too many chunks":   {entriesDoc(reg(`"size":5,"offset":1,"digest":=A`), `{"name":"f","type":"chunk","offset":2,"chunkOffset":5,"chunkDigest":=B}`), layers.ErrBadTOC},
		"late first":        {entriesDoc(reg(`"size":5,"offset":1,"digest":=A,"chunkOffset":1`)), layers.ErrBadTOC},
		"chunk alone":       {entriesDoc(`{"name":"f","type":"chunk","offset":2,"chunkDigest":=B}`), layers.ErrBadTOC},
		"chunk of a dir":    {entriesDoc(`{"name":"f","type":"dir"}`, `{"name":"f","type":"chunk","offset":2,"chunkDigest":=B}`), layers.ErrBadTOC},
		"chunk of empty":    {entriesDoc(`{"name":"f","type":"reg"}`, `{"name":"f","type":"chunk","offset":2,"chunkDigest":=B}`), layers.ErrBadTOC},
		"another's chunk":   {entriesDoc(reg(`"size":5,"offset":1,"digest":=A,"chunkDigest":=B,"chunkSize":3`), `{"name":"g","type":"chunk","offset":2,"chunkOffset":3,"chunkDigest":=B}`), layers.ErrBadTOC},
		"unknown chunk":     {entriesDoc(reg(`"size":5,"offset":1,"digest":=A,"chunkType":"holes"`)), layers.ErrBadTOC},
		"negative offset":   {entriesDoc(reg(`"size":5,"offset":-1,"digest":=A`)), layers.ErrBadTOC},
		"negative inner":    {entriesDoc(reg(`"size":5,"offset":1,"innerOffset":-1,"digest":=A`)), layers.ErrBadTOC},
		"far inner":         {entriesDoc(reg(`"size":5,"offset":1,"innerOffset":` + fmt.Sprint(decode.MaxInner+1) + `,"digest":=A`)), layers.ErrTooLarge},
		"in the TOC":        {entriesDoc(reg(`"size":5,"offset":1000,"digest":=A`)), layers.ErrBadTOC},
		"beyond the blob":   {entriesDoc(reg(`"size":5,"offset":9000,"digest":=A`)), layers.ErrBadTOC},
		"ends in the TOC":   {entriesDoc(reg(`"size":5,"offset":10,"endOffset":1001,"digest":=A`)), layers.ErrBadTOC},
		"ends before":       {entriesDoc(reg(`"size":5,"offset":10,"endOffset":10,"digest":=A`)), layers.ErrBadTOC},
		"ends in the next":  {entriesDoc(reg(`"size":5,"offset":10,"endOffset":30,"digest":=A`), `{"name":"g","type":"reg","size":5,"offset":29,"digest":=B}`), layers.ErrBadTOC},
		"same place":        {entriesDoc(reg(`"size":5,"offset":10,"digest":=A`), `{"name":"g","type":"reg","size":5,"offset":10,"digest":=B}`), layers.ErrBadTOC},
		"overlap in a run":  {entriesDoc(reg(`"size":5,"offset":10,"digest":=A`), `{"name":"g","type":"reg","size":5,"offset":10,"innerOffset":4,"digest":=B}`), layers.ErrBadTOC},
		"place of a hidden": {entriesDoc(`{"name":".prefetch.landmark","type":"reg","size":1,"offset":10,"digest":=A}`, reg(`"size":5,"offset":10,"digest":=A`)), layers.ErrBadTOC},
		"endless zeros":     {entriesDoc(reg(`"size":1125899906842624,"offset":1,"digest":=A,"chunkDigest":=A,"chunkType":"zeros"`)), layers.ErrTooLarge},
	} {
		if _, err := parse(tc.doc); !errors.Is(err, tc.want) {
			t.Errorf("Decode(%s) = %v, want %v", name, err, tc.want)
		}
	}
}

func bombXattrs() string {
	var parts []string
	for i := range 10 {
		parts = append(parts, fmt.Sprintf(`"user.%d":"%s"`, i, strings.Repeat("AAAA", 21000)))
	}
	return strings.Join(parts, ",")
}

// A run is no longer than its bytes can need.
func TestRunLength(t *testing.T) {
	ix, err := Decode(strings.NewReader(digests.Replace(entriesDoc(`{"name":"f","type":"reg","size":1000,"offset":10,"digest":=A}`))), Options{End: 1 << 40})
	if err != nil || ix.Entries[0].Chunks[0].BlobLen != 1250+128<<10 {
		t.Errorf("Decode = %v, %v, want a short run", ix, err)
	}
}

// A large hole comes in pieces whose sums are right.
func TestLargeHole(t *testing.T) {
	const size = 3*maxZeros + 1<<20 + 5000
	ix, err := parse(entriesDoc(fmt.Sprintf(`{"name":"f","type":"reg","size":%d,"offset":1,"digest":=A,"chunkDigest":=B,"chunkSize":%d,"chunkType":"zeros"}`, size+5, size),
		fmt.Sprintf(`{"name":"f","type":"chunk","offset":2,"chunkOffset":%d,"chunkDigest":=C}`, size)))
	if err != nil {
		t.Fatal(err)
	}
	var off int64
	for _, ck := range ix.Entries[0].Chunks {
		if ck.Off != off {
			t.Errorf("chunk at %d, want %d", ck.Off, off)
		}
		if off += ck.Size; off <= size && ck.Sum != layers.SumOf(make([]byte, ck.Size)) || ck.Size > maxZeros {
			t.Errorf("chunk of %d zeros at %d has another sum", ck.Size, ck.Off)
		}
	}
	if off != size+5 {
		t.Errorf("chunks end at %d, want %d", off, size+5)
	}
}

func TestDecodeReaderError(t *testing.T) {
	broken := errors.New("broken")
	if _, err := Decode(iotest.ErrReader(broken), Options{}); !errors.Is(err, broken) {
		t.Errorf("Decode(broken reader) = %v, want its error", err)
	}
	if _, err := Decode(bytes.NewReader(bytes.Repeat([]byte(" "), 1<<20)), Options{}); !errors.Is(err, layers.ErrBadTOC) {
		t.Errorf("Decode(spaces) = %v, want ErrBadTOC", err)
	}
}

// Large documents meet the window's end in all places.
func TestDecodeWindow(t *testing.T) {
	p, end := makeTOC(t, 5000)
	want, err := Decode(bytes.NewReader(p), Options{Compression: layers.Gzip, End: end, Size: int64(len(p))})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(want.Entries); n != 5250 {
		t.Errorf("%d entries, want 5250", n)
	}
	got, err := Decode(iotest.HalfReader(bytes.NewReader(p)), Options{Compression: layers.Gzip, End: end})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Decode in other steps (-want +got):\n%s", diff)
	}
}
