package snapshotter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
	errbolt "go.etcd.io/bbolt/errors"
)

// ErrTorn says that the database of snapshots is damaged. It is left as it is:
// containerd's own database names what was in it, and the directories of
// containers are beside it. doc.go says what to do.
var ErrTorn = errors.New("the database of snapshots is damaged")

// A store is the database of snapshots, in containerd's own format
// (core/snapshots/storage). Beside its buckets is one of ours, which says what
// the book of images holds for a snapshot, so that both change together.
//
//	v1/…      containerd's
//	snapfs    ID of a snapshot → row, JSON
//
// A write transaction waits for the disk twice. Writers that come meanwhile
// share the next one, so fifty containers that start at once wait for two
// transactions, not for fifty.
type store struct {
	ms   *storage.MetaStore
	turn chan struct{} // has a value while somebody writes

	mu    sync.Mutex
	queue []*write // guarded by mu
}

// A write is one of the changes that share a transaction.
type write struct {
	do   func(ctx context.Context, tx *bolt.Tx) error
	done chan error // takes one value
}

// A row is what the book of images holds for a snapshot: one that is committed,
// or staged, which is active and has no content of its own.
type row struct {
	Layer  Layer
	Target digest.Digest // chain ID of the layer with all below it
	// Parent is, in a staged one, the chain ID of what it must be committed on.
	Parent digest.Digest `json:",omitempty"`
}

var (
	rowsBucket = []byte("snapfs")
	// containerd's storage makes its buckets with the first snapshot, and until
	// then fails to list what there is.
	storageBuckets = [2][]byte{[]byte("snapshots"), []byte("parents")}
	storageVersion = []byte("v1")
)

// openStore opens or makes the database, and reads all of it once: what is torn
// is found now, and not by a container that does not start.
func openStore(file string) (*store, error) {
	if err := checkDB(file); err != nil {
		return nil, err
	}
	ms, err := storage.NewMetaStore(file, func(o *bolt.Options) error {
		o.Timeout = lockPatience
		o.FreelistType = bolt.FreelistMapType
		return nil
	})
	if err != nil {
		return nil, err
	}
	st := &store{ms: ms, turn: make(chan struct{}, 1)}
	if err := st.check(file); err != nil {
		return nil, errors.Join(err, ms.Close())
	}
	if err := st.update(context.Background(), buckets); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", file, err), ms.Close())
	}
	return st, nil
}

// buckets makes all buckets of a new database. An old one has them.
func buckets(_ context.Context, tx *bolt.Tx) error {
	empty := true
	if err := tx.ForEach(func([]byte, *bolt.Bucket) error { empty = false; return nil }); err != nil {
		return err
	}
	if !empty {
		v := tx.Bucket(storageVersion)
		if v == nil || v.Bucket(storageBuckets[0]) == nil || v.Bucket(storageBuckets[1]) == nil || tx.Bucket(rowsBucket) == nil {
			return fmt.Errorf("%w: a part is missing", ErrTorn)
		}
		return nil
	}
	v, err := tx.CreateBucket(storageVersion)
	if err != nil {
		return err
	}
	for _, name := range storageBuckets {
		if _, err := v.CreateBucket(name); err != nil {
			return err
		}
	}
	_, err = tx.CreateBucket(rowsBucket)
	return err
}

// check opens the database. bbolt panics at what it does not understand.
func (st *store) check(file string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: %w: %v", file, ErrTorn, p)
		}
	}()
	_, tx, err := st.begin(context.Background(), false)
	switch {
	case errors.Is(err, errbolt.ErrTimeout):
		return fmt.Errorf("%s: another process has it open: %w", file, err)
	case errors.Is(err, errbolt.ErrInvalid), errors.Is(err, errbolt.ErrChecksum), errors.Is(err, errbolt.ErrVersionMismatch):
		return fmt.Errorf("%s: %w: %w", file, ErrTorn, err)
	case err != nil:
		return err
	}
	return tx.Rollback()
}

// begin starts a transaction that containerd's storage finds in ctx.
func (st *store) begin(ctx context.Context, writable bool) (context.Context, *bolt.Tx, error) {
	ctx, t, err := st.ms.TransactionContext(ctx, writable)
	if err != nil {
		return ctx, nil, err
	}
	tx, ok := t.(*bolt.Tx)
	if !ok {
		return ctx, nil, errors.Join(fmt.Errorf("core/snapshots/storage: transactions are %T", t), t.Rollback())
	}
	return ctx, tx, nil
}

// view runs do in a read transaction. do must not block: the database cannot
// grow before it ends.
func (st *store) view(ctx context.Context, do func(ctx context.Context, tx *bolt.Tx) error) error {
	ctx, tx, err := st.begin(ctx, false)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	return do(ctx, tx)
}

// update runs do in a write transaction and returns when it is on disk. do may
// be run several times, and its changes count only if it returns nil. What it
// is called with must not be used after it. ctx is looked at before, not after: whoever
// calls has to know whether it was done.
func (st *store) update(ctx context.Context, do func(ctx context.Context, tx *bolt.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	w := &write{do: do, done: make(chan error, 1)}
	st.mu.Lock()
	st.queue = append(st.queue, w)
	st.mu.Unlock()
	select {
	case err := <-w.done:
		return rethrow(err)
	case st.turn <- struct{}{}:
	}
	st.mu.Lock()
	batch := st.queue
	st.queue = nil
	st.mu.Unlock()
	st.run(batch)
	<-st.turn
	return rethrow(<-w.done) // by this run, or by the one before
}

// A panicked write is one that panicked. Who ran it may serve others, who wait:
// so it panics again where it was asked for, and nobody else suffers.
type panicked struct {
	value any
	stack []byte
}

func (p *panicked) Error() string { return fmt.Sprintf("%v\n%s", p.value, p.stack) }

func rethrow(err error) error {
	if p, ok := errors.AsType[*panicked](err); ok {
		panic(p)
	}
	return err
}

// run does a batch in one transaction. What fails is left out, and done alone
// after the others: it may have failed because of one of them, whose change was
// not to be seen by anybody yet.
func (st *store) run(batch []*write) {
	var alone []*write
	for len(batch) > 0 {
		failed, err := st.commit(batch)
		if failed < 0 || len(batch) == 1 {
			for _, w := range batch {
				w.done <- err
			}
			break
		}
		alone = append(alone, batch[failed])
		batch = slices.Delete(batch, failed, failed+1)
	}
	for _, w := range alone {
		_, err := st.commit([]*write{w})
		w.done <- err
	}
}

// commit does a batch, or nothing of it. failed says which of it had the error;
// if it is negative the error is that of all.
func (st *store) commit(batch []*write) (failed int, err error) {
	at := -1
	defer func() {
		if p := recover(); p != nil {
			failed, err = at, &panicked{p, debug.Stack()}
		}
	}()
	ctx, tx, err := st.begin(context.Background(), true)
	if err != nil {
		return -1, err
	}
	defer tx.Rollback() // after a Commit it does nothing
	for i, w := range batch {
		at = i
		if err := w.do(ctx, tx); err != nil {
			return i, err
		}
	}
	at = -1
	return -1, tx.Commit()
}

// close waits for who writes.
func (st *store) close() error {
	st.turn <- struct{}{}
	defer func() { <-st.turn }()
	return st.ms.Close()
}

func putRow(tx *bolt.Tx, id string, r row) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return tx.Bucket(rowsBucket).Put([]byte(id), b)
}

func deleteRow(tx *bolt.Tx, id string) error { return tx.Bucket(rowsBucket).Delete([]byte(id)) }

// rowOf is what the book holds for a snapshot, if it does.
func rowOf(tx *bolt.Tx, id string) (r row, held bool, err error) {
	b := tx.Bucket(rowsBucket).Get([]byte(id))
	if b == nil {
		return r, false, nil
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, false, fmt.Errorf("what is held for snapshot %s: %w", id, err)
	}
	return r, true, nil
}

func allRows(tx *bolt.Tx) (map[string]row, error) {
	all := make(map[string]row)
	err := tx.Bucket(rowsBucket).ForEach(func(k, v []byte) error {
		var r row
		if err := json.Unmarshal(v, &r); err != nil {
			return fmt.Errorf("snapshot %s: %w", k, err)
		}
		all[string(k)] = r
		return nil
	})
	return all, err
}
