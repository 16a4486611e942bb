package images

import (
	"context"
	"io"
	"sync"
)

// maxAhead is how much of a stream is kept in memory until somebody reads it.
const maxAhead = 16 << 20

// An ahead is a stream that is read before anybody asks for it: the network is
// used from the start. It is for one reader.
type ahead struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when nothing more comes in

	mu    sync.Mutex
	cond  sync.Cond
	limit int
	held  [][]byte
	size  int   // bytes in held
	err   error // what ended the stream
	shut  bool
}

// readAhead opens a stream and reads it until limit bytes are waiting. Close
// ends it, as does base.
func readAhead(base context.Context, limit int, open func(context.Context) (io.ReadCloser, error)) *ahead {
	ctx, cancel := context.WithCancel(base)
	a := &ahead{cancel: cancel, done: make(chan struct{}), limit: limit}
	a.cond.L = &a.mu
	go func() { // ends with ctx; Close waits for it
		defer close(a.done)
		r, err := open(ctx)
		if err == nil {
			err = a.fill(r)
			r.Close() // only read
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		a.err = err
		a.cond.Broadcast()
	}()
	return a
}

func (a *ahead) fill(r io.Reader) error {
	for {
		p := make([]byte, 64<<10)
		n, err := r.Read(p)
		a.mu.Lock()
		if n > 0 {
			a.held = append(a.held, p[:n])
			a.size += n
			a.cond.Broadcast()
		}
		for a.size >= a.limit && !a.shut {
			a.cond.Wait()
		}
		if a.shut && err == nil {
			err = context.Canceled
		}
		a.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// Read waits for the next bytes.
func (a *ahead) Read(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.held) == 0 && a.err == nil {
		a.cond.Wait()
	}
	if len(a.held) == 0 {
		return 0, a.err
	}
	n := copy(p, a.held[0])
	if a.held[0] = a.held[0][n:]; len(a.held[0]) == 0 {
		a.held = a.held[1:]
	}
	a.size -= n
	a.cond.Broadcast()
	return n, nil
}

// Close ends the stream and waits for that.
func (a *ahead) Close() error {
	a.mu.Lock()
	a.shut = true
	a.cond.Broadcast()
	a.mu.Unlock()
	a.cancel()
	<-a.done
	return nil
}
