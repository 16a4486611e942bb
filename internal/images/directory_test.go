package images

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	bolt "go.etcd.io/bbolt"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/images/imagestest"
)

// asking hears when somebody asks whether a context has ended.
type asking struct {
	context.Context
	asked func() error
}

func (a asking) Err() error { return errors.Join(a.asked(), a.Context.Err()) }

// TestDirectoryMeanwhile: while an image is written as a directory, nobody else waits, and
// a collection leaves it alone. Who gives up has it end, and nothing is left of it.
func TestDirectoryMeanwhile(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: files get their owners")
	}
	b := newBook(t)
	im := b.hub.Push(t, "a", imagestest.Gzip, imagestest.Native, imagestest.Files(1, "a", 10))
	k, release, err := b.Use(t.Context(), control.PullArgs{Ref: im.Ref}, untold)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if err := b.CompleteNow(t.Context(), k, nil); err != nil {
		t.Fatal(err)
	}
	k = b.current(k)
	asked := 0
	gone := errors.New("gone")
	parts := func() []string {
		list, err := filepath.Glob(b.directoryPath("." + k.Tree + "-*"))
		if err != nil {
			t.Error(err)
		}
		return list
	}
	ctx := asking{t.Context(), func() error {
		asked++
		if err := b.Collect(t.Context()); err != nil { // which would wait for a lock for ever
			t.Error(err)
		}
		if list := parts(); len(list) == 0 {
			t.Error("the collection has removed what is being written")
		}
		switch asked {
		case 3:
			return gone
		case 5: // somebody else who is at the same image, and is faster
			if err := b.writeDirectory(t.Context(), k); err != nil {
				t.Error(err)
			}
		}
		return nil
	}}
	if err := b.writeDirectory(ctx, k); !errors.Is(err, gone) {
		t.Errorf("writeDirectory = %v, want %v", err, gone)
	}
	if list := b.ls("directories"); !slices.Equal(list, []string{noFiles}) {
		t.Errorf("it has left %q", list)
	}
	if err := b.writeDirectory(ctx, k); err != nil {
		t.Error(err)
	}
	if err := os.Mkdir(b.directoryPath("."+k.Tree+"-1"), 0o700); err != nil { // of a process that was killed
		t.Fatal(err)
	}
	if err := b.Collect(t.Context()); err != nil {
		t.Error(err)
	}
	if list := b.ls("directories"); !slices.Equal(list, []string{k.Tree, noFiles}) || asked < 10 {
		t.Errorf("there are %q, after %d reads; want the image and %s", list, asked, noFiles)
	}
	files := 0
	err = filepath.WalkDir(b.directoryPath(k.Tree), func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			files++
		}
		return err
	})
	if err != nil || files != 10 {
		t.Errorf("the image has %d files, %v, want 10", files, err)
	}
}

// TestDirectoriesOfAnotherKernel: they go when the machine has another, and not while something may have them mounted.
func TestDirectoriesOfAnotherKernel(t *testing.T) {
	b := newBook(t)
	im := b.hub.Push(t, "a", imagestest.Gzip, imagestest.Native, imagestest.Files(1, "a", 10))
	k, release, err := b.Use(t.Context(), control.PullArgs{Ref: im.Ref}, untold)
	if err != nil {
		t.Fatal(err)
	}
	release()
	if err := os.MkdirAll(b.directoryPath(k.Tree), 0o700); err != nil {
		t.Fatal(err)
	}
	b.shut()
	b.open()
	at := b.directoryPath(k.Tree)
	if err := b.Collect(t.Context()); err != nil {
		t.Error(err)
	}
	b.shut()
	if _, err := os.Stat(at); err != nil {
		t.Fatalf("another backend on the same kernel: %v", err)
	}
	d, err := openDB(filepath.Join(b.root, "snapfs.db"))
	if err != nil {
		t.Fatal(err)
	}
	err = d.Update(func(tx *bolt.Tx) error { return put(tx, "meta", "boot", bootRow{ID: "another", Clean: true}) })
	if err := errors.Join(err, d.Close()); err != nil {
		t.Fatal(err)
	}
	b.open()
	b.shut() // waits for it
	if _, err := os.Stat(at); !os.IsNotExist(err) {
		t.Errorf("after a boot it is still there: %v", err)
	}
}
