package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime"
)

// A slot is a monitor that was started before there is a container for it, so
// that no start has to wait for a process to begin. It is given one container,
// once, and from then on is that container's monitor like any other. It belongs
// to who holds the other end of its socket, the worker: when that is closed it ends.
//
//	worker                                   slot
//	  order{Like}                 ──▶        warms up, makes a sandbox (runtime.Ahead)
//	                              ◀──        answer{Sandbox}
//	  order{Dir…}, namespaces     ──▶        is a monitor: holds DIR/lock, listens, mounts
//	                              ◀──        answer{}, and hangs up
//
// The sandbox is the container's first process, in namespaces and in the cgroup of
// Like, where nothing has run. A container of another cgroup, or that wants other
// namespaces, is started without it.
type order struct {
	Like  *Config  `json:",omitempty"` // what a container will look like; none of it is ever run
	Dir   string   `json:",omitempty"` // the container's
	Log   string   `json:",omitempty"` // where the monitor complains from now on
	Kinds []string `json:",omitempty"` // of the namespaces that come with it

	// Config is what is in Dir; nil: it is to be read there. With Likewise it has no seccomp
	// profile, which is Like's: that is four fifths of its bytes.
	Config   *Config `json:",omitempty"`
	Likewise bool    `json:",omitempty"`
}

// told is an order as a slot reads it: see decodeFields.
type told struct {
	order
	Like, Config json.RawMessage
}

type answer struct {
	Error   string `json:",omitempty"`
	Sandbox bool   `json:",omitempty"` // there is one
	Why     string `json:",omitempty"` // there is none
}

// maxJoins is how many namespaces a container can be given.
const maxJoins = 8

// An Assignment is the container that a slot was given.
type Assignment struct {
	Dir, Log string
	Options  Options // with namespaces, runner and whom to tell
}

// Await is the life of a slot until it is given a container. The error is io.EOF
// when nobody wants it any more. conn is the slot's, and becomes the Assignment's.
func Await(conn *control.Conn) (_ *Assignment, err error) {
	r := new(bundled)
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Release())
			conn.Close()
		}
	}()
	for {
		var o told
		files, err := conn.Recv(&o)
		if err != nil {
			return nil, err
		}
		if o.Like != nil {
			closeFiles(files)
			like := new(Config)
			if err := decodeFields(o.Like, like); err != nil {
				return nil, fmt.Errorf("slot: %w", err)
			}
			if err := conn.Send(r.warm(like)); err != nil {
				return nil, err
			}
			continue
		}
		a, err := o.assignment(files)
		if err == nil {
			a.Options.Config, err = r.configOf(&o)
		}
		if err != nil {
			closeFiles(files)
			return nil, errors.Join(err, conn.Send(answer{Error: err.Error()}))
		}
		a.Options.Ready, a.Options.Runner = serving{conn}, r
		return a, nil
	}
}

func (o *told) assignment(files []*os.File) (*Assignment, error) {
	for _, p := range []string{o.Dir, o.Log} {
		if !filepath.IsAbs(p) || filepath.Clean(p) != p {
			return nil, fmt.Errorf("slot: %q: want a clean absolute path", p)
		}
	}
	if len(o.Kinds) != len(files) || len(files) > maxJoins {
		return nil, fmt.Errorf("slot: %d descriptors came for %d namespaces", len(files), len(o.Kinds))
	}
	a := &Assignment{Dir: o.Dir, Log: o.Log}
	for i, kind := range o.Kinds {
		a.Options.Join = append(a.Options.Join, Namespace{kind, files[i]})
	}
	return a, nil
}

// configOf is the configuration that came with an order; nil if none did.
func (b *bundled) configOf(o *told) (*Config, error) {
	if o.Config == nil {
		return nil, nil
	}
	c := new(Config)
	if err := decodeFields(o.Config, c); err != nil {
		return nil, fmt.Errorf("slot: %w", err)
	}
	if err := c.complete(); err != nil {
		return nil, fmt.Errorf("slot: %w", err)
	}
	if !o.Likewise {
		return c, nil
	}
	if b.like == nil || b.like.Spec.Linux == nil || c.Spec.Linux == nil {
		return nil, errors.New("slot: the profile of what it was to be like, and that is not known")
	}
	c.Spec.Linux.Seccomp = b.like.Spec.Linux.Seccomp
	return c, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// serving tells the worker that the monitor answers, when it is closed.
type serving struct{ conn *control.Conn }

func (s serving) Write(p []byte) (int, error) { return len(p), nil }

func (s serving) Close() error { // a worker that has died meanwhile need not know
	return errors.Join(s.conn.Send(answer{}), s.conn.Close())
}

// sandboxTime bounds the making of a sandbox.
const sandboxTime = 10 * time.Second

// warm goes through what a start does that needs no container: what a process
// learns at the first time (how types read and write as JSON, pages of the
// program, the filter of the profile) it has learnt then. And it makes the sandbox.
func (b *bundled) warm(like *Config) answer {
	plan, err := likely(like)
	b.like = like
	if err != nil {
		return answer{Error: err.Error()}
	}
	ctx, cancel := context.WithTimeout(context.Background(), sandboxTime)
	defer cancel()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ahead != nil {
		return answer{Error: "slot: it is warm already"}
	}
	if b.ahead, err = runtime.NewAhead(ctx, plan); err != nil {
		b.ahead = nil
		return answer{Why: err.Error()}
	}
	return answer{Sandbox: true}
}

func likely(like *Config) (*runtime.Plan, error) {
	if err := like.complete(); err != nil {
		return nil, err
	}
	for _, v := range []any{State{Status: StatusRunning, Pid: 1, Started: now()}, Exit{}, Event{Started: true}} {
		if _, err := json.Marshal(v); err != nil {
			return nil, err
		}
	}
	for _, v := range []any{new(AttachArgs), new(Input), new(JoinArgs), new(State)} {
		if err := json.Unmarshal([]byte("{}"), v); err != nil {
			return nil, err
		}
	}
	return runtime.NewPlan(like.Spec, runtime.Options{ID: like.ID, CgroupParent: like.CgroupParent, SeccompCache: like.SeccompCache, Init: like.Init})
}

// A Slot is the worker's end of a slot. It is safe for concurrent use.
type Slot struct {
	Pid    int
	Born   time.Time
	Cgroup string // of its sandbox, if it has one

	like    *Config
	conn    *control.Conn
	warmed  chan struct{} // closed at its first answer
	served  chan struct{} // closed at its second
	ended   chan struct{} // closed when it has hung up
	reading sync.WaitGroup

	mu      sync.Mutex
	given   bool
	why     string // of what went wrong
	sandbox bool
	without string // why there is no sandbox
}

// NewSlot warms a slot up, to whose socket conn is the other end. Its owner calls Close.
func NewSlot(conn *control.Conn, pid int, like *Config) *Slot {
	s := &Slot{Pid: pid, Born: time.Now(), Cgroup: like.Spec.Linux.CgroupsPath, like: like, conn: conn, warmed: make(chan struct{}), served: make(chan struct{}), ended: make(chan struct{})}
	s.reading.Go(s.read)
	if err := conn.Send(order{Like: like}); err != nil {
		s.fail(err.Error())
		conn.CloseRead()
	}
	return s
}

func (s *Slot) read() {
	defer close(s.ended)
	for _, step := range []chan struct{}{s.warmed, s.served} {
		var a answer
		files, err := s.conn.Recv(&a)
		closeFiles(files)
		if err != nil {
			return
		}
		if a.Error != "" {
			s.fail(a.Error)
			return
		}
		s.mu.Lock()
		s.sandbox, s.without = s.sandbox || a.Sandbox, s.without+a.Why
		s.mu.Unlock()
		close(step)
	}
}

func (s *Slot) fail(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why == "" {
		s.why = why
	}
}

// ErrSlot says that a slot has ended before its time, and that its container has no monitor.
var ErrSlot = errors.New("a monitor that was started ahead has ended")

func (s *Slot) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why != "" {
		return fmt.Errorf("%w: %s", ErrSlot, s.why)
	}
	return ErrSlot
}

// Wait waits until the slot is warm; an error wraps ErrSlot, or is ctx's.
func (s *Slot) Wait(ctx context.Context) error {
	select {
	case <-s.warmed:
		return nil
	case <-s.ended:
		return s.err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Sandbox says whether the slot has a sandbox, and if not, why.
func (s *Slot) Sandbox() (ok bool, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sandbox, s.without
}

// Ended is closed when the slot has hung up: as it has served, or is dead.
func (s *Slot) Ended() <-chan struct{} { return s.ended }

// Alive says whether the slot is warm and waits for a container.
func (s *Slot) Alive() bool {
	select {
	case <-s.ended:
		return false
	default:
	}
	select {
	case <-s.warmed:
		return true
	default:
		return false
	}
}

// Give makes the slot the monitor of the container in dir, and returns when it
// answers. The namespaces stay the caller's. c is what is in dir, or nil. It may be called once. After an
// error that wraps ErrSlot the container has no monitor, and another may be started.
func (s *Slot) Give(ctx context.Context, dir, log string, join []Namespace, c *Config) error {
	s.mu.Lock()
	given := s.given
	s.given = true
	s.mu.Unlock()
	if given {
		return errors.New("a slot was given a second container")
	}
	o := order{Dir: dir, Log: log}
	if c != nil {
		o.Config, o.Likewise = without(c, s.like)
	}
	var files []*os.File
	for _, n := range join {
		o.Kinds, files = append(o.Kinds, n.Kind), append(files, n.File)
	}
	if err := s.conn.Send(o, files...); err != nil {
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
			return s.err()
		}
		return err
	}
	select {
	case <-s.served:
		return nil
	case <-s.ended:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-s.served:
		return nil
	default:
		return s.err()
	}
}

// without is c without its seccomp profile, if like has the same.
func without(c, like *Config) (*Config, bool) {
	if c.Spec.Linux == nil || c.Spec.Linux.Seccomp == nil || !reflect.DeepEqual(c.Spec.Linux.Seccomp, like.Spec.Linux.Seccomp) {
		return c, false
	}
	short, spec, linux := *c, *c.Spec, *c.Spec.Linux
	linux.Seccomp = nil
	short.Spec, spec.Linux = &spec, &linux
	return &short, true
}

// Close lets the slot end, if it has not been given a container.
func (s *Slot) Close() error {
	err := s.conn.Close()
	s.reading.Wait()
	return err
}

// Stderr has the process complain in a file from now on.
func (a *Assignment) Stderr() error {
	f, err := os.OpenFile(a.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return os.NewSyscallError("dup3", unix.Dup3(int(f.Fd()), 2, 0))
}
