package userns

import (
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/control"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]Request{
		"host":            {},
		"auto":            {Auto: true},
		"container:x":     {Of: "x"},
		"auto:size=1":     {Auto: true, Size: 1},
		"auto:size=65536": {Auto: true, Size: 65536},
		"auto:size=10,uidmapping=5:1000:1,uidmapping=7:1007:2,gidmapping=5:50:1": {
			Auto: true, Size: 10, UID: []mounts.Extent{{Container: 5, Host: 1000, Size: 1}, {Container: 7, Host: 1007, Size: 2}},
			GID: []mounts.Extent{{Container: 5, Host: 50, Size: 1}},
		},
	} {
		if got, err := Parse(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("Parse(%q) = %+v, %v, want %+v", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"":                               "want host, auto or container:NAME",
		"host:size=1":                    "want host, auto or container:NAME",
		"container:":                     "want host, auto or container:NAME",
		"keep-id":                        "want host, auto or container:NAME",
		"Auto":                           "want host, auto or container:NAME",
		"auto:":                          `unknown option ""`,
		"auto:size":                      "size=",
		"auto:size=0":                    "size=0",
		"auto:size=4294967295":           "size=4294967295",
		"auto:size=-1":                   "size=-1",
		"auto:size=1,colour=red":         `unknown option "colour"`,
		"auto:uidmapping=1:2":            "uidmapping",
		"auto:gidmapping=1:x:3":          "gidmapping",
		"auto:uidmapping=1:0:3":          "--userns host",
		"auto:uidmapping=1:2:0":          "empty",
		"auto:uidmapping=9:9:4294967290": "beyond",
		"auto:" + strings.Repeat("uidmapping=1:2:3,", 40): "more than 32",
		"auto:size=" + strings.Repeat("1", maxText):       "at most",
	} {
		if got, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%.50q) = %+v, %v, want an error with %q", text, got, err, want)
		}
	}
}

func TestMap(t *testing.T) {
	r := control.IDRange{UID: 100000, GID: 200000, Size: 10}
	for text, want := range map[string]string{
		"auto":                     "0:100000:10 0:200000:10",
		"auto:uidmapping=5:1000:1": "0:100000:5,5:1000:1,6:100006:4 0:200000:10",
		"auto:uidmapping=0:1000:1": "0:1000:1,1:100001:9 0:200000:10",
		"auto:uidmapping=9:1000:1,gidmapping=20:50:2":  "0:100000:9,9:1000:1 0:200000:10,20:50:2",
		"auto:uidmapping=8:1000:5,uidmapping=3:2000:1": "0:100000:3,3:2000:1,4:100004:4,8:1000:5 0:200000:10",
	} {
		q, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if m, err := q.Map(r); err != nil || m.String() != want {
			t.Errorf("%s: %v, %v, want %s", text, m, err, want)
		}
	}
	for _, text := range []string{"auto:uidmapping=1:1000:5,uidmapping=3:2000:1", "auto:gidmapping=1:1000:5,gidmapping=9:1004:1", "auto:uidmapping=20:100003:1"} {
		q, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if m, err := q.Map(r); err == nil {
			t.Errorf("%s: %v, which overlaps", text, m)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"host", "auto", "auto:size=65536,uidmapping=5:1000:1,gidmapping=0:7:3", "auto:,=,size=", "auto:uidmapping=0:1:4294967294"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		q, err := Parse(s)
		if err != nil || !q.Auto {
			return
		}
		size := max(q.Size, 1)
		r := control.IDRange{UID: 0x70000000, GID: 0x70000000, Size: min(size, 0x0FFE0000)}
		m, err := q.Map(r)
		if err != nil {
			return
		}
		// Nobody's number is given by two, and the host's root is nobody's.
		for _, list := range [][]mounts.Extent{m.UID, m.GID} {
			for i, a := range list {
				if a.Host == 0 {
					t.Errorf("%q maps the host's root: %v", s, m)
				}
				for _, b := range list[:i] {
					if overlap(a.Host, a.Size, b.Host, b.Size) || overlap(a.Container, a.Size, b.Container, b.Size) {
						t.Errorf("%q: %v and %v overlap", s, a, b)
					}
				}
			}
		}
	})
}

func TestPool(t *testing.T) {
	p := Pool{IDRange: control.IDRange{UID: 100_000, GID: 500_000, Size: 40}}
	r := func(u, g, n uint32) control.IDRange { return control.IDRange{UID: u, GID: g, Size: n} }
	for name, row := range map[string]struct {
		use        []control.IDRange
		size, from uint32
		want       control.IDRange // the zero value: none
	}{
		"first":                    {nil, 10, 0, r(100_000, 500_000, 10)},
		"next":                     {[]control.IDRange{r(100_000, 500_000, 10)}, 10, 10, r(100_010, 500_010, 10)},
		"next, although first":     {nil, 10, 20, r(100_020, 500_020, 10)},
		"around the end":           {[]control.IDRange{r(100_030, 500_030, 10)}, 10, 40, r(100_000, 500_000, 10)},
		"does not fit at the end":  {nil, 20, 30, r(100_000, 500_000, 20)},
		"between":                  {[]control.IDRange{r(100_000, 500_000, 10), r(100_020, 500_020, 20)}, 10, 0, r(100_010, 500_010, 10)},
		"between, too small":       {[]control.IDRange{r(100_000, 500_000, 11), r(100_020, 500_020, 20)}, 10, 0, control.IDRange{}},
		"groups only":              {[]control.IDRange{r(7, 500_000, 30)}, 10, 0, r(100_030, 500_030, 10)},
		"of another configuration": {[]control.IDRange{r(99_995, 7, 10)}, 10, 0, r(100_005, 500_005, 10)},
		"across both ends":         {[]control.IDRange{r(99_000, 7, 5000)}, 1, 0, control.IDRange{}},
		"all":                      {nil, 40, 0, r(100_000, 500_000, 40)},
		"more than all":            {nil, 41, 0, control.IDRange{}},
		"none":                     {nil, 0, 0, control.IDRange{}},
		"full":                     {[]control.IDRange{r(100_000, 500_000, 40)}, 1, 0, control.IDRange{}},
		"an offset beyond":         {nil, 1, math.MaxUint32, r(100_000, 500_000, 1)},
	} {
		got, ok := p.Take(row.use, row.size, row.from)
		if got != row.want || ok != (row.want != control.IDRange{}) {
			t.Errorf("%s: %v, %v, want %v", name, got, ok, row.want)
		}
	}
}

// Ranges that are given and taken back at random never overlap, and there is room until there is none.
func TestPoolAtRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	p := Pool{IDRange: control.IDRange{UID: 0x70000000, GID: 0x70000007, Size: 1000}}
	var have []control.IDRange
	next, full := uint32(0), 0
	for range 20_000 {
		if len(have) > 0 && rng.IntN(3) == 0 {
			i := rng.IntN(len(have))
			have[i] = have[len(have)-1]
			have = have[:len(have)-1]
			continue
		}
		r, ok := p.Take(have, uint32(1+rng.IntN(60)), next)
		if !ok {
			full++
			if _, ok := p.Take(nil, p.Size, next); !ok {
				t.Fatal("an empty pool is full")
			}
			continue
		}
		next = p.End(r)
		if r.UID < p.UID || r.UID+r.Size > p.UID+p.Size || r.GID-r.UID != 7 {
			t.Fatalf("%v is not of the pool %v", r, p)
		}
		for _, o := range have {
			if overlap(r.UID, r.Size, o.UID, o.Size) || overlap(r.GID, r.Size, o.GID, o.Size) {
				t.Fatalf("%v and %v overlap", r, o)
			}
		}
		have = append(have, r)
	}
	if full == 0 {
		t.Error("the pool was never full: the test is too easy")
	}
}

func TestPoolCheck(t *testing.T) {
	r := func(u, g, n uint32) Pool { return Pool{IDRange: control.IDRange{UID: u, GID: g, Size: n}} }
	for _, p := range []Pool{Default, r(65536, 65536, 1), r(math.MaxUint32-1, 65536, 1)} {
		if err := p.Check(); err != nil {
			t.Errorf("%v: %v", p, err)
		}
	}
	for _, p := range []Pool{{}, r(65535, 65536, 1), r(65536, 1000, 1), r(65536, 65536, 0), r(65536, 65536, math.MaxUint32), r(math.MaxUint32, 65536, 1)} {
		if err := p.Check(); err == nil {
			t.Errorf("%v: no error", p)
		}
	}
	if e, ok := Default.Touches(Default.UID, []mounts.Extent{{Container: 1, Host: 1000, Size: 5}, {Container: 1, Host: 0x6fffffff, Size: 2}}); !ok || e.Host != 0x6fffffff {
		t.Errorf("Touches = %v, %v", e, ok)
	}
	if e, ok := Default.Touches(Default.UID, []mounts.Extent{{Container: 1, Host: 0x7ffe0000, Size: 5}}); ok {
		t.Errorf("Touches = %v", e)
	}
}

func TestSubordinate(t *testing.T) {
	for name, row := range map[string]struct {
		uid, gid string
		want     control.IDRange
		ok       bool
	}{
		"both":        {"me:100000:65536\nsnapfs:200000:131072\n", "snapfs:300000:65536\n", control.IDRange{UID: 200000, GID: 300000, Size: 65536}, true},
		"the first":   {"snapfs:200000:1\nsnapfs:300000:1", "snapfs:200000:1", control.IDRange{UID: 200000, GID: 200000, Size: 1}, true},
		"one missing": {"snapfs:200000:1", "", control.IDRange{}, false},
		"another's":   {"containers:200000:65536", "containers:200000:65536", control.IDRange{}, false},
		"nonsense":    {"snapfs:x:1\nsnapfs:1\n::\nsnapfs:5:99999999999\n", "snapfs:200000:1", control.IDRange{}, false},
		"nothing":     {"", "", control.IDRange{}, false},
	} {
		p, ok := Subordinate([]byte(row.uid), []byte(row.gid))
		if ok != row.ok || ok && p.IDRange != row.want {
			t.Errorf("%s: %v, %v, want %v", name, p, ok, row.want)
		}
	}
}

func FuzzSubordinate(f *testing.F) {
	f.Add([]byte("snapfs:200000:65536\n"), []byte("a:1:2\nsnapfs:300000:65536"))
	f.Fuzz(func(t *testing.T, u, g []byte) {
		p, ok := Subordinate(u, g)
		if !ok || p.Check() != nil {
			return
		}
		if r, ok := p.Take(nil, p.Size, 0); !ok || r != p.IDRange {
			t.Errorf("%v: all of it is %v, %v", p, r, ok)
		}
	})
}
