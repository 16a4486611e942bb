package fetch

import (
	"errors"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/snapfs/snapfs/layers"
)

// Expect announces chunks that somebody is about to Insert, in this order: a
// reader who misses one waits for it, unless it will come sooner by a range
// request. done says that no more will come; it is called once.
func (f *Fetcher) Expect(items []Item) (done func()) {
	d := &delivery{f: f, began: time.Now()}
	for _, it := range items {
		d.expect(it)
	}
	leave := f.gate.hold(boot)
	return sync.OnceFunc(func() {
		leave()
		d.end()
	})
}

// patience is how long a reader waits for a delivery at most: a few times what a
// range request takes on a slow line. One that he makes would delay the delivery,
// and those who wait for it.
const patience = 300 * time.Millisecond

// A delivery is what was announced by one call of Expect.
type delivery struct {
	f       *Fetcher
	began   time.Time
	total   int64 // plain bytes
	flights []*expected

	mu   sync.Mutex
	came int64 // how far it has come in its order
}

// An expected flight is one whose chunk is to be delivered.
type expected struct {
	d      *delivery
	part   part
	before int64 // plain bytes of the delivery before and with it

	once sync.Once // rush
	fall sync.Once // gives up waiting
}

// expect begins the flight of a chunk, if it is one and missing.
func (d *delivery) expect(it Item) {
	o, i := d.f.chunk(it.Object, it.Off, it.Size)
	if o == nil {
		return
	}
	defer d.f.release(o)
	x := &expected{d: d, before: d.total + it.Size}
	if _, isNew := d.f.claim(o, i, nil, x); !isNew {
		return
	}
	d.total = x.before
	d.flights = append(d.flights, x)
}

// chunk returns the object that has such a chunk, which the caller releases, and
// which it is. It is nil if there is none, or the object is complete or disputed.
func (f *Fetcher) chunk(sum layers.Sum, off, size int64) (o *object, i int) {
	o = f.known(sum)
	if o == nil {
		if f.store.Has(sum) {
			return nil, 0
		}
		var err error
		if o, _, err = f.object(sum); o == nil || err != nil {
			return nil, 0
		}
	}
	i = sort.Search(len(o.chunks), func(i int) bool { return o.chunks[i].Off >= off })
	if i == len(o.chunks) || o.chunks[i].Off != off || o.chunks[i].Size != size {
		f.release(o)
		return nil, 0
	}
	return o, i
}

// rush says that a reader waits.
func (x *expected) rush() {
	x.once.Do(func() {
		wait := x.d.eta(x)
		if wait > patience {
			x.fetch()
			return
		}
		// It may come a little later than it seems.
		time.AfterFunc(min(patience, 2*wait+20*time.Millisecond), x.fetch)
	})
}

// eta is in how much time a chunk should come.
func (d *delivery) eta(x *expected) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	left := x.before - d.came
	switch {
	case left <= 0: // it was passed over
		return 2 * patience
	case d.came == 0:
		return patience / 2
	}
	return time.Duration(float64(time.Since(d.began)) / float64(d.came) * float64(left))
}

// fetch sends a request for a chunk that does not come.
func (x *expected) fetch() {
	x.fall.Do(func() {
		o, i := x.part.o, x.part.i
		o.mu.Lock()
		landed := o.flights[i] != x.part.fl
		o.mu.Unlock()
		if !landed {
			x.d.f.stats.Late.Add(1)
			x.d.f.launch(o, []int{i}, []*flight{x.part.fl}, demand)
		}
	})
}

// note says that the chunk of a flight has come.
func (x *expected) note() {
	x.d.mu.Lock()
	defer x.d.mu.Unlock()
	x.d.came = max(x.d.came, x.before)
}

// end gives up what did not come. Who waits for it asks for it by himself.
func (d *delivery) end() {
	for _, x := range d.flights {
		x.fall.Do(func() { d.f.land(x.part, outcome{err: errNotDelivered, weak: true}) })
	}
}

var errNotDelivered = errors.New("it was not delivered")

// Insert adds the chunk at off of an object, which a layer has, and wakes who
// waits for it. It says whether the chunk is new. The error is a
// *layers.DigestError if the bytes are others, and that of the disk if they could
// not be kept; who waits has them then. plain may be changed after the call.
func (f *Fetcher) Insert(sum layers.Sum, off int64, plain []byte) (bool, error) {
	o, i := f.chunk(sum, off, int64(len(plain)))
	if o == nil {
		return false, nil
	}
	defer f.release(o)
	o.mu.Lock()
	fl := o.flights[i]
	o.mu.Unlock()
	if fl == nil && o.has(i) {
		return false, nil
	}
	last, err := o.keep(i, plain, false)
	if isDigest(err) {
		return false, err
	}
	out := outcome{}
	if err != nil {
		f.unkept(err)
		out.data, out.lost = slices.Clone(plain), err
	} else {
		f.stats.Kept.Add(int64(len(plain)))
		f.stats.Inserted.Add(int64(len(plain)))
	}
	if fl != nil {
		if fl.x != nil {
			fl.x.note()
		}
		f.land(part{o: o, i: i, fl: fl}, out)
	}
	if last {
		if perr := f.promote(o); !isBad(perr) {
			return true, perr
		}
	}
	return err == nil, err
}
