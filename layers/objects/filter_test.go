package objects

import (
	"encoding/binary"
	"testing"

	"github.com/snapfs/snapfs/layers"
)

// small returns the i-th of many small objects.
func small(i int) []byte { return binary.LittleEndian.AppendUint64(nil, uint64(i)) }

// TestFilter: an object that is a file does not get into a pack, whether it was
// there before the filter or came later, in whatever way.
func TestFilter(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	put := func(from, to int) {
		for i := from; i < to; i++ {
			if err := s.Put(layers.SumOf(small(i)), small(i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(0, 100)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(dir, Options{}); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	put(100, 200) // before it is begun
	first, err := s.NewPack("first")
	if err != nil {
		t.Fatal(err)
	}
	s.filter.wg.Wait()
	put(200, 300) // when it is complete
	for i := range 100 {
		data := small(1000 + i)
		chunks := []layers.Chunk{{Size: int64(len(data)), Sum: layers.SumOf(data)}}
		p, err := s.Partial(layers.SumOf(data), int64(len(data)), chunks)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Put(0, data); err != nil {
			t.Fatal(err)
		}
		if err := p.Promote(); err != nil {
			t.Fatal(err)
		}
		p.Close()
	}
	if err := s.Barrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range 1100 {
		if _, err := first.Add(small(i)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 1100 {
		_, packed := first.own[layers.SumOf(small(i))]
		if there := i < 300 || i >= 1000; packed == there {
			t.Errorf("object %d: in the pack %t, a file before %t", i, packed, there)
		}
	}
	if err := first.Commit(); err != nil {
		t.Fatal(err)
	}
	in := 0
	for i := range 10_000 {
		if !s.filter.excludes(layers.SumOf(small(5000 + i))) {
			in++
		}
	}
	if in > 10 {
		t.Errorf("of 10000 objects that are no files the filter excludes only %d", 10_000-in)
	}
	again, err := s.NewPack("again")
	if err != nil {
		t.Fatal(err)
	}
	defer again.Abort()
	if _, err := again.Add(small(500)); err != nil || len(again.own) > 0 {
		t.Errorf("an object of another pack is packed again: %v", err)
	}
}

// TestFilterIsNotReady: until it is, it excludes nothing.
func TestFilterIsNotReady(t *testing.T) {
	f := new(filter)
	if f.excludes(layers.SumOf(nil)) {
		t.Error("it excludes what it does not know")
	}
	f.ready.Store(true)
	if !f.excludes(layers.SumOf(nil)) {
		t.Error("it does not exclude what it has not")
	}
	f.add(layers.SumOf(nil))
	if f.excludes(layers.SumOf(nil)) {
		t.Error("it excludes what it has")
	}
}
