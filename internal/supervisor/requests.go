package supervisor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/control"
)

// Operations of RUN/supervisor.sock.
const (
	OpStop = "supervisor.stop" // nil; answered before the daemon stops

	opReady   = "supervisor.ready"    // readyArgs
	opMount   = "supervisor.mount"    // mountArgs → mountResult
	opUnmount = "supervisor.unmount"  // mountArgs
	opMap     = "supervisor.map"      // mapArgs → mountResult
	opKeep    = "supervisor.keep"     // keepArgs
	opUsers   = "supervisor.users"    // usersArgs → nil, and a user namespace, and one of its network
	opSpawn   = "supervisor.spawn"    // Process, descriptors → spawned
	opStore   = "supervisor.remember" // memory
	opRecall  = "supervisor.recall"   // nil → memory
	opProgram = "supervisor.program"  // programArgs, two or three descriptors → programEnd
	opNetns   = "supervisor.netns"    // netnsArgs, perhaps a descriptor → mountResult
	opNoNetns = "supervisor.nonetns"  // netnsArgs

	opRelease = "worker.release" // of RUN/worker.sock: nil → released, three descriptors and more
)

type readyArgs struct{ Pid int }

type mountArgs struct {
	ID   string
	File string        `json:",omitempty"`
	Map  *mounts.IDMap `json:",omitempty"` // of owners
}

type mapArgs struct {
	Dir string
	Map mounts.IDMap
}

// keepArgs say which mappings are to stay of a directory, or of all images.
type keepArgs struct {
	Dir  string `json:",omitempty"`
	Maps []mounts.IDMap
}

// usersArgs say what users a namespace has, and whether it is to have a network, too.
type usersArgs struct {
	Map     mounts.IDMap
	Network bool `json:",omitempty"`
}

type mountResult struct{ Dir string }

type spawned struct{ Pid int }

type released struct {
	Init    []byte
	Memory  map[string][]byte `json:",omitempty"`
	Sockets []string          `json:",omitempty"` // paths of those whose descriptors come fourth and later
}

// A Process is a program to be started detached: in its own session, with
// /dev/null as standard input, and alive after the daemon ended.
type Process struct {
	Argv   []string
	Env    []string   // nil: the supervisor's
	Dir    string     // "": "/"
	Log    string     // file to which standard output and error are appended; "": /dev/null
	Sealed bool       // it is executed from a read-only mount, so that nobody whom it shows itself to can write to its file; not for scripts
	File   []*os.File `json:"-"` // descriptors 3, 4, …
}

func (s *supervisor) handle(ctx context.Context, r *control.Request) error {
	switch r.Op {
	case control.OpSupervisor:
		return r.Reply(s.status())
	case OpStop:
		err := r.Reply(nil)
		s.stop()
		return err
	case opReady:
		return s.becameReady(r)
	case opMount:
		return s.mountImage(r)
	case opUnmount:
		return s.unmountImage(r)
	case opMap:
		return s.mapDir(r)
	case opKeep:
		return s.keepMapped(r)
	case opUsers:
		return s.users(r)
	case opSpawn:
		return s.spawn(r)
	case opStore:
		return s.remember(r)
	case opRecall:
		return r.Reply(s.memory.all())
	case opProgram:
		return s.program(ctx, r)
	case opNetns:
		return s.makeNetns(r)
	case opNoNetns:
		return s.dropNetns(r)
	}
	return &control.Error{Code: control.CodeInvalid, Message: "supervisor: unknown operation " + r.Op}
}

func (s *supervisor) becameReady(r *control.Request) error {
	var a readyArgs
	if err := r.Decode(&a); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.Pid == s.worker && !s.isReady {
		s.isReady = true
		close(s.ready)
	}
	return nil
}

// users makes a user namespace, which takes a process, and one that belongs to it.
func (s *supervisor) users(r *control.Request) error {
	var a usersArgs
	if err := r.Decode(&a); err != nil {
		return err
	}
	if err := a.Map.Check(); err != nil {
		return invalid("%v", err)
	}
	if !a.Network {
		user, err := a.Map.UserNS()
		if err != nil {
			return err
		}
		defer user.Close()
		return r.Reply(nil, user)
	}
	user, net, err := a.Map.UserAndNetNS()
	if err != nil {
		return err
	}
	defer user.Close()
	defer net.Close()
	return r.Reply(nil, user, net)
}

func (s *supervisor) spawn(r *control.Request) error {
	var p Process
	if err := r.Decode(&p); err != nil {
		return err
	}
	if len(p.Argv) == 0 || !filepath.IsAbs(p.Argv[0]) {
		return &control.Error{Code: control.CodeInvalid, Message: fmt.Sprintf("program %q is not absolute", p.Argv)}
	}
	if p.Env == nil {
		p.Env = environ()
	}
	if p.Dir == "" {
		p.Dir = "/"
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	out := null
	if p.Log != "" {
		out, err = os.OpenFile(p.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return err
		}
		defer out.Close()
	}
	pid, files := 0, append([]*os.File{null, out, out}, r.Files...)
	if p.Sealed {
		err = s.sealed.with(p.Argv[0], func(exe *os.File) (err error) {
			pid, err = s.kids.startSealed(exe, p.Argv, p.Env, p.Dir, files)
			return err
		})
	} else {
		pid, _, err = s.kids.start(p.Argv, p.Env, p.Dir, files)
	}
	if err != nil {
		return err
	}
	return r.Reply(spawned{pid})
}
