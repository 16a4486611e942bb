package runtime

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// An op is one system call of the program that a child runs between clone3 and
// execve. Its layout is known to vm_*.s.
type op struct {
	nr      uintptr    // system call, or opCompare
	arg     [6]uintptr // where bit i of flags is set, the address of argument i
	flags   uintptr
	okErr   uintptr // a negative errno that is no failure; 0 none
	skipErr uintptr // ops to skip after such an error
	skipOK  uintptr // ops to skip after success
	result  uintptr
}

const (
	flagAny  = 1 << 6 // no error is a failure
	flagExec = 1 << 7 // ENOENT and ENOTDIR are none; EACCES is remembered, as execvp(3) does
	flagFork = 1 << 8 // it makes a child, which goes on; this process exits with 0

	opCompare = ^uintptr(0) // *a0 and *a1 agree under the mask a2, or the error is a3
)

// An outcome is what a child tells its parent. It lies in shared memory. The
// first three words are also written to report, for a parent that has no such memory.
type outcome struct {
	index  int // of the op that failed
	errno  int // its negative errno; 0 while nothing has failed
	denied int // negative EACCES after an execve that was denied
	report int // descriptor in the child; 0 none
	pid    int // of the child that a flagFork made, in the pid namespace of who made it
}

// cloneArgs is struct clone_args of Linux 5.7 (88 bytes).
type cloneArgs struct {
	flags      uint64
	pidfd      uint64 // address
	_          uint64
	parentTid  uint64 // address
	exitSignal uint64
	_          [5]uint64
	cgroup     uint64 // descriptor
}

// A ref stands for the result of an earlier op where an argument is wanted.
// No address and no small number, negative or not, lies in its range.
type ref = uintptr

const (
	refBase  ref = 1 << 62
	addrBase ref = 1 << 61 // the address of a result instead
)

// addressOf turns a reference to a result into one to its address.
func addressOf(r ref) ref { return r - refBase + addrBase }

// A program is the ops, the memory they point to and a name for each.
type program struct {
	ops   []op
	names []string // of the step an op belongs to
	step  string   // for ops to come
	arena []byte
	keep  []any
}

func newProgram() *program {
	return &program{ops: make([]op, 0, 256), names: make([]string, 0, 256), arena: make([]byte, 0, 16<<10)}
}

// add appends a system call and returns a reference to its result.
func (p *program) add(nr uintptr, args ...uintptr) ref {
	o := op{nr: nr}
	copy(o.arg[:], args)
	p.ops = append(p.ops, o)
	p.names = append(p.names, p.step)
	return refBase + uintptr(len(p.ops)-1)
}

// last is the op that was added last, to say what of it is tolerated.
func (p *program) last() *op { return &p.ops[len(p.ops)-1] }

// tolerate makes err (0: any) of the last op no failure, and skips the next skip ops after it.
func (p *program) tolerate(err unix.Errno, skip int) {
	o := p.last()
	if err == 0 {
		o.flags |= flagAny
	}
	o.okErr, o.skipErr = negative(err), uintptr(skip)
}

// str returns the address of s with a NUL behind it.
func (p *program) str(s string) uintptr {
	b := p.bytes(len(s) + 1)
	copy(b, s)
	return addr(b)
}

// bytes returns n zero bytes, aligned to 8, that live as long as the program.
func (p *program) bytes(n int) []byte {
	n = (n + 7) &^ 7
	if cap(p.arena)-len(p.arena) < n {
		p.keep = append(p.keep, p.arena)
		p.arena = make([]byte, 0, max(n, 16<<10))
	}
	off := len(p.arena)
	p.arena = p.arena[:off+n]
	return p.arena[off : off+n : off+n]
}

// pointers returns the address of a NULL-terminated array of strings.
func (p *program) pointers(list []string) uintptr {
	b := p.bytes(8 * (len(list) + 1))
	words := unsafe.Slice((*uintptr)(unsafe.Pointer(&b[0])), len(list)+1)
	for i, s := range list {
		words[i] = p.str(s)
	}
	return addr(b)
}

// value returns the address of a copy of v, which must not hold Go pointers.
func value[T any](p *program, v T) uintptr {
	b := p.bytes(int(unsafe.Sizeof(v)))
	*(*T)(unsafe.Pointer(&b[0])) = v
	return addr(b)
}

// link turns references into addresses. No op may be added afterwards.
func (p *program) link() {
	for i := range p.ops {
		o := &p.ops[i]
		for k, a := range o.arg {
			if n := a - refBase; a >= refBase && n < uintptr(len(p.ops)) {
				o.arg[k] = uintptr(unsafe.Pointer(&p.ops[n].result))
				o.flags |= 1 << k
			} else if n := a - addrBase; a >= addrBase && n < uintptr(len(p.ops)) {
				o.arg[k] = uintptr(unsafe.Pointer(&p.ops[n].result))
			}
		}
	}
}

func addr(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }

// negative is how a system call returns an error.
func negative(err unix.Errno) uintptr { return -uintptr(err) }
