package snapshotter

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"
)

// TestPages: what bbolt writes is right, with pages of all kinds.
func TestPages(t *testing.T) {
	file := filepath.Join(t.TempDir(), "db")
	for _, size := range []int{512, 4096, 65536} {
		db, err := bolt.Open(file, 0o600, &bolt.Options{PageSize: size, NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		for round := range 6 {
			err := db.Update(func(tx *bolt.Tx) error {
				b, err := tx.CreateBucketIfNotExists([]byte("b"))
				for i := range 300 * round {
					inner, err := b.CreateBucketIfNotExists(fmt.Append(nil, "inner", i))
					if err != nil {
						return err
					}
					if err := inner.Put([]byte("k"), bytes.Repeat([]byte("v"), i%3*round*size/9)); err != nil {
						return err
					}
				}
				for i := range 100 * (round - 1) {
					if err := b.DeleteBucket(fmt.Append(nil, "inner", i)); err != nil {
						return err
					}
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			whole, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := checkPages(bytes.NewReader(whole), int64(len(whole))); err != nil {
				t.Errorf("pages of %d bytes, round %d: %v", size, round, err)
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzPages: bbolt can read what checkPages lets through. The input are two
// changes of a database of small pages.
func FuzzPages(f *testing.F) {
	file := filepath.Join(f.TempDir(), "db")
	db, err := bolt.Open(file, 0o600, &bolt.Options{PageSize: 512, NoSync: true, NoGrowSync: true})
	if err != nil {
		f.Fatal(err)
	}
	for round := range 3 {
		err = db.Update(func(tx *bolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists([]byte("b"))
			for i := range 20 {
				inner, ierr := b.CreateBucketIfNotExists(fmt.Append(nil, "inner", i))
				err = errors.Join(err, ierr, inner.Put([]byte("k"), bytes.Repeat([]byte("v"), i*round*8)))
			}
			return err
		})
		if err != nil {
			f.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(file)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint16(0), []byte{}, uint16(0), []byte{})
	f.Add(uint16(1024), []byte("x"), uint16(2048), []byte{255, 255, 255, 255, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, at1 uint16, patch1 []byte, at2 uint16, patch2 []byte) {
		b := bytes.Clone(whole)
		copy(b[int(at1)%len(b):], patch1)
		copy(b[int(at2)%len(b):], patch2)
		if checkPages(bytes.NewReader(b), int64(len(b))) != nil {
			return
		}
		file := filepath.Join(t.TempDir(), "db")
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := bolt.Open(file, 0o600, &bolt.Options{ReadOnly: true, PreLoadFreelist: true})
		if err != nil {
			return // another version
		}
		defer db.Close()
		var walk func(b *bolt.Bucket) error
		walk = func(b *bolt.Bucket) error {
			return b.ForEach(func(k, v []byte) error {
				if v == nil {
					return walk(b.Bucket(k))
				}
				return nil
			})
		}
		if err := db.View(func(tx *bolt.Tx) error { return tx.ForEach(func(_ []byte, b *bolt.Bucket) error { return walk(b) }) }); err != nil {
			t.Error(err)
		}
	})
}
