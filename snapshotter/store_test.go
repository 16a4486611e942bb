package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	bolt "go.etcd.io/bbolt"
)

// TestBatch: writers that share a transaction see each other, and one that
// fails because of another hears of it when the other's change is there.
func TestBatch(t *testing.T) {
	st, err := openStore(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.close()
	there := errors.New("is there")
	has := func(key string) (yes bool) {
		err := st.view(t.Context(), func(_ context.Context, tx *bolt.Tx) error {
			yes = tx.Bucket(rowsBucket).Get([]byte(key)) != nil
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		return yes
	}
	st.turn <- struct{}{} // nobody writes, so all that follow are one batch
	var wg sync.WaitGroup
	var mu sync.Mutex
	won, lost := map[string]int{}, map[string]int{}
	for i := range 60 {
		key := fmt.Sprint(i % 20)
		wg.Go(func() {
			err := st.update(t.Context(), func(_ context.Context, tx *bolt.Tx) error {
				if tx.Bucket(rowsBucket).Get([]byte(key)) != nil {
					return there
				}
				return tx.Bucket(rowsBucket).Put([]byte(key), []byte("x"))
			})
			if err != nil && !errors.Is(err, there) {
				t.Error(err)
			}
			if !has(key) {
				t.Errorf("%s: update returned %v, and it is not there", key, err)
			}
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won[key]++
			} else {
				lost[key]++
			}
		})
	}
	for n := 0; n < 60; runtime.Gosched() {
		st.mu.Lock()
		n = len(st.queue)
		st.mu.Unlock()
	}
	<-st.turn
	wg.Wait()
	for i := range 20 {
		if key := fmt.Sprint(i); won[key] != 1 || lost[key] != 2 {
			t.Errorf("%s: %d have made it, %d found it", key, won[key], lost[key])
		}
	}
	if err := st.update(t.Context(), func(context.Context, *bolt.Tx) error { return there }); !errors.Is(err, there) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := st.update(ctx, func(context.Context, *bolt.Tx) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("update of who has gone: %v", err)
	}
}

// TestPanic: a writer that panics does so alone, whoever runs it.
func TestPanic(t *testing.T) {
	st, err := openStore(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.close()
	st.turn <- struct{}{} // so that all are one batch
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			defer func() {
				if p := recover(); (p != nil) != (i == 1) {
					t.Errorf("writer %d: panic %v", i, p)
				}
			}()
			err := st.update(t.Context(), func(_ context.Context, tx *bolt.Tx) error {
				if i == 1 {
					panic("on purpose")
				}
				return tx.Bucket(rowsBucket).Put([]byte(fmt.Sprint(i)), []byte("x"))
			})
			if err != nil {
				t.Errorf("writer %d: %v", i, err)
			}
		})
	}
	for n := 0; n < 3; runtime.Gosched() {
		st.mu.Lock()
		n = len(st.queue)
		st.mu.Unlock()
	}
	<-st.turn
	wg.Wait()
	if err := st.view(t.Context(), func(_ context.Context, tx *bolt.Tx) error {
		if n := tx.Bucket(rowsBucket).Stats().KeyN; n != 2 {
			return fmt.Errorf("%d changes, want 2", n)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// TestReplaced: who comes while another still has the database waits until it
// ends, and does not take what is being written for damage.
func TestReplaced(t *testing.T) {
	o := Options{Root: t.TempDir(), Run: t.TempDir()}
	first, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	type opened struct {
		s   *Snapshotter
		err error
	}
	second := make(chan opened)
	go func() {
		s, err := New(o)
		second <- opened{s, err}
	}()
	for i := range 20 {
		if _, err := first.Prepare(t.Context(), fmt.Sprint(i), ""); err != nil {
			t.Error(err)
		}
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	got := <-second
	if got.err != nil {
		t.Fatal(got.err)
	}
	defer got.s.Close()
	if n := len(kinds(t, got.s)); n != 20 {
		t.Errorf("%d snapshots, want 20", n)
	}
}
