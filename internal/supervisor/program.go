package supervisor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

const (
	programTime = 30 * time.Second // for a program to end
	pipeTime    = time.Second      // for its output to end after it: a child of its own may hold that
	maxOutput   = 1 << 20          // bytes
)

type programArgs struct {
	Name  string // in PATH, or an absolute path
	Args  []string
	Env   []string      `json:",omitempty"` // beside the supervisor's
	Time  time.Duration `json:",omitempty"` // 0: programTime
	Alone string        `json:",omitempty"` // see Program
}

type programEnd struct {
	Status int    // exit status
	Signal string `json:",omitempty"` // that ended it instead
}

// program runs a program with the request's two or three descriptors as standard
// input, output and error, waits for its end, and tells its exit status. It is killed, and
// what it has started with it, when the worker hangs up or it takes too long.
//
// It does not outlive the supervisor: nobody would know that it still runs. The
// kernel ends it with the thread that has started it, which therefore waits for it.
func (s *supervisor) program(ctx context.Context, r *control.Request) error {
	var a programArgs
	if err := r.Decode(&a); err != nil {
		return err
	}
	if len(r.Files) != 2 && len(r.Files) != 3 || a.Name == "" || strings.ContainsRune(a.Name, 0) || strings.ContainsRune(a.Name, '/') && !filepath.IsAbs(a.Name) {
		return &control.Error{Code: control.CodeInvalid, Message: fmt.Sprintf("program %q with %d descriptors", a.Name, len(r.Files))}
	}
	path, err := exec.LookPath(a.Name)
	if errors.Is(err, exec.ErrNotFound) {
		return &control.Error{Code: control.CodeNotFound, Message: err.Error()}
	}
	if err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	if a.Alone != "" {
		done, err := s.alone.enter(ctx, a.Alone)
		if err != nil {
			return err
		}
		defer done()
		if err := context.Cause(ctx); err != nil { // whoever comes next undoes what this one would begin
			return err
		}
	}
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	pid, end, err := s.kids.startMortal(append([]string{path}, a.Args...), environ(a.Env...), "/", append(r.Files[:len(r.Files):len(r.Files)], null)[:3])
	if err != nil {
		return err
	}
	closeAll(r.Files...) // so that the other ends of the pipes see the program's
	r.Files = nil
	most := cmp.Or(a.Time, programTime)
	ctx, cancel := context.WithTimeoutCause(ctx, most, fmt.Errorf("%s has not ended for %v", a.Name, most))
	defer cancel()
	select {
	case status := <-end:
		e := programEnd{Status: status.ExitStatus()}
		if status.Signaled() {
			e.Signal = status.Signal().String()
		}
		return r.Reply(e)
	case <-ctx.Done():
		s.kids.kill(pid)
		<-end
		return context.Cause(ctx)
	}
}

// A queue lets in one at a time for each word.
type queue struct {
	mu   sync.Mutex
	busy map[string]chan struct{} // closed when who is in leaves
}

// enter waits for its turn. Who is in calls done.
func (q *queue) enter(ctx context.Context, word string) (done func(), err error) {
	for {
		q.mu.Lock()
		other := q.busy[word]
		if other == nil {
			mine := make(chan struct{})
			if q.busy == nil {
				q.busy = map[string]chan struct{}{}
			}
			q.busy[word] = mine
			q.mu.Unlock()
			return func() {
				q.mu.Lock()
				delete(q.busy, word)
				q.mu.Unlock()
				close(mine)
			}, nil
		}
		q.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// kill ends a child of which nobody has heard the end yet, and its session.
func (c *children) kill(pid int) {
	c.mu.Lock() // a child that has not been reaped keeps its number
	defer c.mu.Unlock()
	if _, ok := c.ends[pid]; ok {
		unix.Kill(-pid, unix.SIGKILL)
	}
}

// A Program is one that runs for a short time and answers on its standard output.
type Program struct {
	Name  string // in PATH, or an absolute path
	Args  []string
	Env   []string // NAME=VALUE, beside the supervisor's
	Stdin []byte
	Most  int           // bytes of its output; more are an error. 0: the first MiB counts
	Time  time.Duration // that it may take; 0: 30 s
	// Alone, if not empty, has it wait for the end of others with that word, also
	// of those that an earlier worker has left, which are being killed.
	Alone string
	// Stderr gets the first 64 KiB of what it complains. nil: nobody does.
	Stderr *[]byte
}

// maxComplaint is how much of a program's standard error is kept, bytes.
const maxComplaint = 64 << 10

// errOutput says that a program has written too much.
var errOutput = errors.New("its output is too long")

// Output has the supervisor run a program of PATH with stdin as its standard
// input, and returns its standard output, at most 1 MiB of it, also when it
// failed. The program ends with ctx.
func (w *Worker) Output(ctx context.Context, name, arg string, stdin []byte) (stdout []byte, err error) {
	return w.RunProgram(ctx, Program{Name: name, Args: []string{arg}, Stdin: stdin})
}

// RunProgram is Output for any program.
func (w *Worker) RunProgram(ctx context.Context, p Program) (stdout []byte, err error) {
	in, inEnd, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	out, outEnd, err := os.Pipe()
	if err != nil {
		closeAll(in, inEnd)
		return nil, err
	}
	most, excess := p.Most, int64(0)
	if most <= 0 {
		most = maxOutput
	}
	var ends sync.WaitGroup
	ends.Go(func() {
		inEnd.Write(p.Stdin) // a program need not read it
		inEnd.Close()
	})
	ends.Go(func() {
		defer out.Close()
		stdout, _ = io.ReadAll(io.LimitReader(out, int64(most))) // what came counts; the status tells the rest
		if p.Most > 0 {
			excess, _ = io.CopyN(io.Discard, out, 1) // what writes without end learns that nobody reads
			return
		}
		io.Copy(io.Discard, out)
	})
	files := []*os.File{in, outEnd}
	var complaint *os.File
	if p.Stderr != nil {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll(in, inEnd, out, outEnd)
			ends.Wait()
			return nil, err
		}
		complaint, files = r, append(files, w)
		ends.Go(func() {
			defer r.Close()
			*p.Stderr, _ = io.ReadAll(io.LimitReader(r, maxComplaint))
			io.Copy(io.Discard, r)
		})
	}
	var e programEnd
	_, err = w.ask(ctx, opProgram, programArgs{p.Name, p.Args, p.Env, p.Time, p.Alone}, &e, files...)
	deadline := time.Now().Add(pipeTime)
	closeAll(files...)
	inEnd.SetWriteDeadline(deadline)
	out.SetReadDeadline(deadline)
	if complaint != nil {
		complaint.SetReadDeadline(deadline)
	}
	ends.Wait()
	switch {
	case excess > 0:
		return stdout, fmt.Errorf("%s: %w: more than %d bytes", p.Name, errOutput, most)
	case err != nil:
		return stdout, fmt.Errorf("%s: %w", p.Name, err)
	case e.Signal != "":
		return stdout, fmt.Errorf("%s: %s", p.Name, e.Signal)
	case e.Status != 0:
		return stdout, fmt.Errorf("%s: exit status %d", p.Name, e.Status)
	}
	return stdout, nil
}
