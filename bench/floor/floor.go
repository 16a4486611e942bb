// Package floor writes the least program that starts a container and waits for
// its end, to have something to compare runtimes with: what it takes is the kernel's.
//
// The program is static, has no library, and reads nothing: it is a few
// instructions that walk a list of system calls, worked out beforehand from a
// spec and from what the machine has. None of them is a check, and nothing is
// kept, so that it could not be used: it makes the cgroups and removes them,
// clones a process into them and into new namespaces, and there mounts,
// masks, drops, filters and executes what the spec says, each by the fewest and
// oldest calls that do it. Limits are left out but for those of devices in cgroup v1.
package floor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The program's memory, as walk_*.s has it: one segment, a copy of the file.
const (
	base    = 0x400000
	countAt = base + 0x78 // behind the ELF headers
	codeAt  = base + 0x80
	opsAt   = base + 0x400
	dataAt  = base + 0xb000
	opSize  = 80
	maxOps  = (dataAt - opsAt) / opSize
	maxData = 1 << 20
)

// An op is one system call.
type op struct {
	nr, a0, a1, a2, a3, a4, a5 uint64
	flags                      uint64
	result                     uint64
	skip                       uint64 // ops that the parent skips after a flagFork
}

const (
	flagArg0   = 1 << 0 // the argument is at that address
	flagArg1   = 1 << 1
	flagFork   = 1 << 6
	flagExists = 1 << 7 // EEXIST is no failure
	flagBusy   = 1 << 8 // after EBUSY it is tried again
	flagStatus = 1 << 9 // a wait status at its second argument is 0, or a failure
)

const codeEnd = "snapwalk"

// A program is the list, a name for each, and the memory behind it.
type program struct {
	ops   []op
	names []string
	step  string // for ops to come
	data  []byte
}

// add appends a call and returns its place in the list.
func (p *program) add(nr uint64, args ...uint64) int {
	var a [6]uint64
	copy(a[:], args)
	p.ops = append(p.ops, op{nr, a[0], a[1], a[2], a[3], a[4], a[5], 0, 0, 0})
	p.names = append(p.names, p.step)
	return len(p.ops) - 1
}

func (p *program) flag(flags uint64) { p.ops[len(p.ops)-1].flags |= flags }

// resultAt is the address of an op's result.
func resultAt(i int) uint64 { return opsAt + uint64(i)*opSize + uint64(unsafe.Offsetof(op{}.result)) }

// put copies bytes to the program's memory, aligned to 8, and returns their address.
func (p *program) put(b []byte) uint64 {
	for len(p.data)%8 != 0 {
		p.data = append(p.data, 0)
	}
	at := dataAt + uint64(len(p.data))
	p.data = append(p.data, b...)
	return at
}

// str is the address of a string; "" is no string at all, as mount(2) wants it.
func (p *program) str(s string) uint64 {
	if s == "" {
		return 0
	}
	return p.put(append([]byte(s), 0))
}

// value is the address of a copy of v.
func value[T any](p *program, v T) uint64 {
	return p.put(unsafe.Slice((*byte)(unsafe.Pointer(&v)), unsafe.Sizeof(v)))
}

// strings is the address of a NULL-terminated array of strings.
func (p *program) strings(list []string) uint64 {
	b := make([]byte, 0, 8*len(list)+8)
	for _, s := range list {
		b = binary.LittleEndian.AppendUint64(b, p.put(append([]byte(s), 0)))
	}
	return p.put(binary.LittleEndian.AppendUint64(b, 0))
}

// image is the program as an executable file.
func (p *program) image() ([]byte, error) {
	if len(p.ops) > maxOps || len(p.data) > maxData {
		return nil, fmt.Errorf("%d system calls and %d bytes: too many", len(p.ops), len(p.data))
	}
	code := unsafe.Slice((*byte)(walkAddr()), opsAt-codeAt)
	n := bytes.Index(code, []byte(codeEnd))
	if n < 0 {
		return nil, errors.New("the code has no end")
	}
	size := uint64(dataAt - base + len(p.data))
	le := binary.LittleEndian
	b := append([]byte("\x7fELF"), 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0) // 64 bits, little-endian, version 1
	b = le.AppendUint16(b, 2)                                          // ET_EXEC
	b = le.AppendUint16(b, 62)                                         // EM_X86_64
	b = le.AppendUint32(b, 1)
	for _, v := range []uint64{codeAt, 64, 0} { // entry, program headers, section headers
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 56, 1, 0, 0, 0} { // sizes and numbers of headers
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(b, 1)                                       // PT_LOAD
	b = le.AppendUint32(b, 7)                                       // readable, writable, executable
	for _, v := range []uint64{0, base, base, size, size, 0x1000} { // offset, addresses, sizes, alignment
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint64(b, uint64(len(p.ops)))
	b = append(b, code[:n]...)
	b = append(b, make([]byte, opsAt-base-len(b))...)
	for i := range p.ops {
		b = append(b, unsafe.Slice((*byte)(unsafe.Pointer(&p.ops[i])), opSize)...)
	}
	b = append(b, make([]byte, dataAt-base-len(b))...)
	return append(b, p.data...), nil
}

// A Floor is a program that has been written.
type Floor struct {
	Name  string // of the file
	names []string
}

func (p *program) write(name string) (*Floor, error) {
	b, err := p.image()
	if err != nil {
		return nil, err
	}
	return &Floor{name, p.names}, os.WriteFile(name, b, 0o700)
}

// Explain turns what the program wrote to standard error into words. It returns
// nil if that is nothing.
func (f *Floor) Explain(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if len(b)%16 != 0 { // the child's words come first
		return fmt.Errorf("floor: %q", b)
	}
	togo, errno := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
	step := "something unknown"
	if i := uint64(len(f.names)) - togo; i < uint64(len(f.names)) {
		step = f.names[i]
	}
	if int64(errno) > 0 {
		return fmt.Errorf("floor: %s: status %#x", step, errno)
	}
	return fmt.Errorf("floor: %s: %w", step, unix.Errno(-errno))
}
