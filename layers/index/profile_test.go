package index

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/snapfs/snapfs/layers"
)

// items makes a profile of one start: names in order, a millisecond apart. A name
// is the object's, a whole one of 100 bytes.
func items(names string) *Profile {
	p := &Profile{Starts: 1}
	for i, n := range strings.Fields(names) {
		p.Items = append(p.Items, Item{Object: sum(n), Size: 100, Sum: sum(n), At: time.Duration(i) * time.Millisecond, Weight: FullWeight})
	}
	return p
}

// show writes a profile as names and weights.
func show(p *Profile) string {
	var b strings.Builder
	for _, it := range p.Items {
		for n := 'a'; n <= 'z'; n++ {
			if it.Object == sum(string(n)) {
				fmt.Fprintf(&b, "%c%d ", n, it.Weight)
			}
		}
	}
	return strings.TrimSpace(b.String())
}

func TestMerge(t *testing.T) {
	for _, tc := range []struct{ name, starts, want string }{
		{"one", "a b c", "a1000 b1000 c1000"},
		{"the same again", "a b c, a b c", "a1000 b1000 c1000"},
		{"the order stays", "a b c, c b a", "a1000 b1000 c1000"},
		{"new ones come behind what was before them", "a b, x a y b z", "x500 a1000 y500 b1000 z500"},
		{"behind what came before in add, not in old", "a b c, c x a y", "a1000 y500 b500 c1000 x500"},
		{"no longer used", "a b, a, a, a", "a1000 b250"},
		{"forgotten after eight starts of nine", "a b, a, a, a, a, a, a, a", "a1000 b125"},
		{"forgotten", "a b, a, a, a, a, a, a, a, a", "a1000"},
		{"back again", "a b, a, a b", "a1000 b667"},
		{"nothing in common", "a b, c d", "c500 d500 a500 b500"},
		{"an empty start", "a, , ", "a333"},
	} {
		var p *Profile
		n := 0
		for start := range strings.SplitSeq(tc.starts, ",") {
			p = Merge(p, items(start))
			if n++; p.Starts != min(n, MaxStarts) {
				t.Errorf("%s: %d starts after %d", tc.name, p.Starts, n)
			}
			if err := p.Check(); err != nil {
				t.Errorf("%s: %v", tc.name, err)
			}
		}
		if got := show(p); got != tc.want {
			t.Errorf("%s: Merge of %q = %q, want %q", tc.name, tc.starts, got, tc.want)
		}
	}
}

// What every start read fades when it is no longer read, whatever came before;
// what one start read is soon forgotten.
func TestMergeForgets(t *testing.T) {
	var p *Profile
	for range 100 {
		p = Merge(p, items("a b"))
	}
	n := 0
	for ; strings.Contains(show(p), "b"); n++ {
		p = Merge(p, items("a"))
	}
	if n < 10 || n > 18 {
		t.Errorf("an item of all starts is forgotten after %d that did not read it, want about 15", n)
	}
	p = Merge(p, items("a c"))
	if got := show(p); got != "a1000 c125" {
		t.Errorf("an item of one start in eight = %q", got)
	}
	if got := show(Merge(p, items("a"))); got != "a1000" {
		t.Errorf("after the next start = %q", got)
	}
}

func TestMergeTakesTheNewerSum(t *testing.T) {
	a, b := items("a"), items("a")
	a.Items[0].Size, b.Items[0].Size = 50, 50
	a.Items[0].Sum, b.Items[0].Sum = sum("x"), sum("y")
	b.Items[0].At = 10 * time.Millisecond
	got := Merge(a, b)
	if len(got.Items) != 1 || got.Items[0].Sum != sum("y") || got.Items[0].At != 5*time.Millisecond {
		t.Errorf("Merge = %+v", got.Items)
	}
	if a.Items[0].Sum != sum("x") {
		t.Error("Merge changed what it was given")
	}
}

func TestMergeWithinLimits(t *testing.T) {
	big := func(n int, name string) *Profile {
		p := &Profile{Starts: 1}
		for i := range n {
			p.Items = append(p.Items, Item{Object: sum(fmt.Sprint(name, i)), Size: 1 << 16, Sum: sum("c"), Weight: FullWeight})
		}
		return p
	}
	p := Merge(big(10_000, "a"), big(10_000, "b"))
	if err := p.Check(); err != nil || p.Bytes() != MaxProfileBytes {
		t.Errorf("Merge of much = %d items, %d bytes, %v", len(p.Items), p.Bytes(), err)
	}
}

func TestProfileCheck(t *testing.T) {
	many := &Profile{Starts: 1}
	for i := range 17 {
		many.Items = append(many.Items, Item{Object: sum("x"), Off: int64(i) * layers.MaxChunk, Size: layers.MaxChunk, Sum: sum(fmt.Sprint(i)), Weight: 1})
	}
	if err := many.Check(); !errors.Is(err, layers.ErrTooLarge) {
		t.Errorf("Check of %d bytes = %v, want ErrTooLarge", many.Bytes(), err)
	}
	many.Trim()
	if err := many.Check(); err != nil || len(many.Items) != 16 {
		t.Errorf("Check of what Trim left = %d items, %v", len(many.Items), err)
	}
	if err := (&Profile{Starts: 1, Items: make([]Item, MaxItems+1)}).Check(); !errors.Is(err, layers.ErrTooLarge) {
		t.Errorf("Check of many items = %v, want ErrTooLarge", err)
	}
	for name, change := range map[string]func(*Profile){
		"starts":       func(p *Profile) { p.Starts = 0 },
		"many starts":  func(p *Profile) { p.Starts = MaxStarts + 1 },
		"offset":       func(p *Profile) { p.Items[1].Off = -1 },
		"far offset":   func(p *Profile) { p.Items[1].Off = layers.MaxFile },
		"size":         func(p *Profile) { p.Items[1].Size = 0 },
		"large":        func(p *Profile) { p.Items[1].Size = layers.MaxChunk + 1 },
		"object":       func(p *Profile) { p.Items[1].Object = layers.Sum{} },
		"sum":          func(p *Profile) { p.Items[1].Sum = layers.Sum{} },
		"part is all":  func(p *Profile) { p.Items[1].Sum = p.Items[1].Object },
		"time":         func(p *Profile) { p.Items[1].At = -time.Millisecond },
		"microseconds": func(p *Profile) { p.Items[1].At = time.Microsecond },
		"weeks":        func(p *Profile) { p.Items[1].At = maxAt + time.Millisecond },
		"weight":       func(p *Profile) { p.Items[1].Weight = 0 },
		"heavy":        func(p *Profile) { p.Items[1].Weight = FullWeight + 1 },
		"twice":        func(p *Profile) { p.Items[0] = p.Items[1] },
	} {
		p := sampleProfile()
		change(p)
		if err := p.Check(); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: Check = %v, want ErrCorrupt", name, err)
		}
		if _, _, err := encodeProfile(newEncoder(), p); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: encodeProfile = %v, want ErrCorrupt", name, err)
		}
	}
}

// A profile is small: it is in front of all else that has to come.
func TestProfileSize(t *testing.T) {
	p := &Profile{Starts: MaxStarts}
	for i := range 1000 {
		p.Items = append(p.Items, Item{Object: sum(fmt.Sprint(i / 5)), Off: int64(i%5) * layers.ChunkSize, Size: layers.ChunkSize,
			Sum: sum(fmt.Sprint("c", i)), At: time.Duration(i) * 3 * time.Millisecond, Weight: FullWeight})
	}
	stored, s, err := encodeProfile(newEncoder(), p)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(stored) - 32*1200; n > 1000 { // 200 objects, 1000 chunks
		t.Errorf("%d bytes for 1000 items beside their sums, want at most 1000", n)
	}
	if got, err := decodeProfile(stored, &s); err != nil || !got.Equal(p) {
		t.Errorf("decodeProfile = %v", err)
	}
}

func TestDecodeProfileLies(t *testing.T) {
	for name, change := range map[string]func(cols *[profileColumns][]byte){
		"object back of none": func(c *[profileColumns][]byte) { c[profileObject][0] = 0 },
		"object far back":     func(c *[profileColumns][]byte) { c[profileObject][4] = 9 },
		"no more objects":     func(c *[profileColumns][]byte) { c[profileObjects] = c[profileObjects][32:] },
		"more objects":        func(c *[profileColumns][]byte) { c[profileObject][1] = 2 },
		"no more sums":        func(c *[profileColumns][]byte) { c[profileSums] = c[profileSums][1:] },
		"short column":        func(c *[profileColumns][]byte) { c[profileSize] = c[profileSize][1:] },
		"long column":         func(c *[profileColumns][]byte) { c[profileSize] = append(c[profileSize], 1) },
		"before the start": func(c *[profileColumns][]byte) {
			c[profileAt] = append(binary.AppendVarint(nil, -1), c[profileAt][1:]...)
		},
		"before the file": func(c *[profileColumns][]byte) {
			c[profileOff] = append(binary.AppendVarint(nil, -9), c[profileOff][1:]...)
		},
		"more items than bytes": func(c *[profileColumns][]byte) { c[profileWhole] = nil },
	} {
		p := sampleProfile()
		stored, s, err := encodeProfile(newEncoder(), p)
		if err != nil {
			t.Fatal(err)
		}
		var in [profileColumns]cursor
		if _, err := unpack(stored, s.plain, in[:]); err != nil {
			t.Fatal(err)
		}
		var cols [profileColumns][]byte
		for i := range in {
			cols[i] = slices.Clone(in[i].p)
		}
		change(&cols)
		stored, s.plain = pack(newEncoder(), 0, cols[:]...)
		if got, err := decodeProfile(stored, &s); !errors.Is(err, ErrCorrupt) || got != nil {
			t.Errorf("%s: decodeProfile = %v, %v, want ErrCorrupt", name, got, err)
		}
	}
}

func FuzzProfile(f *testing.F) {
	stored, s, err := encodeProfile(newEncoder(), sampleProfile())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(stored, s.plain, s.records)
	f.Fuzz(func(t *testing.T, stored []byte, plain int64, records uint32) {
		if plain < 0 || plain > 1<<20 {
			return
		}
		p, err := decodeProfile(stored, &section{plain: plain, records: records})
		if err != nil {
			if !sentinel(err) || p != nil {
				t.Errorf("decodeProfile = %v, %v, which wraps no sentinel", p, err)
			}
			return
		}
		stored, s, err := encodeProfile(newEncoder(), p)
		if err != nil {
			t.Fatal(err)
		}
		if q, err := decodeProfile(stored, &s); err != nil || !p.Equal(q) {
			t.Errorf("again: %v\n%s", err, cmp.Diff(p, q))
		}
	})
}

func FuzzMerge(f *testing.F) {
	f.Add("a b c", "c x a")
	f.Fuzz(func(t *testing.T, a, b string) {
		distinct := func(s string) string {
			f := strings.Fields(s)
			slices.Sort(f)
			return strings.Join(slices.Compact(f), " ")
		}
		p := Merge(items(distinct(a)), items(distinct(b)))
		if err := p.Check(); err != nil {
			t.Error(err)
		}
		for range MaxStarts {
			p = Merge(p, items(distinct(b)))
		}
		if want := len(items(distinct(b)).Items); len(p.Items) != want && want <= MaxItems {
			t.Errorf("%d items after many starts of %d", len(p.Items), want)
		}
	})
}
