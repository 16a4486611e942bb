package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// poolSize is how many slots there are while starts are timed: one is used at a time.
const poolSize = 2

// firstBytes is pooled with a daemon of its own.
func (c *config) firstBytes(ctx context.Context) (_ []row, err error) {
	d, err := startDaemon(ctx, c.bin, filepath.Join(c.work, "pool"), "[network]", "bridge = 'snapfs1'") // another daemon has had the usual one
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	step("timing first bytes")
	return c.pooled(ctx, d)
}

// pooled times what the first byte of a container takes, with everything made ahead
// and with nothing: after a request of the daemon by a process that runs, as a
// server's would, and after the start of snapctl. Ratios are to the first row, "cold".
func (c *config) pooled(ctx context.Context, d *daemon) (_ []row, err error) {
	exe, err := byteProgram(ctx, c.work)
	if err != nil {
		return nil, err
	}
	image, err := makeImage(ctx, filepath.Join(c.work, "layout"), "byte", base(exe))
	if err != nil {
		return nil, err
	}
	if err := d.snapctl(ctx, "pull", "--quiet", image); err != nil {
		return nil, err
	}
	// The bridge is there from the first container on.
	if err := d.snapctl(ctx, "run", "--rm", "--quiet", "--network", control.NetworkBridge, image); err != nil {
		return nil, err
	}
	type kind struct {
		name    string
		size    int
		network string
		first   func(ctx context.Context, image, network string) (time.Duration, error)
	}
	var kinds []kind
	for _, network := range []string{control.NetworkBridge, control.NetworkNone} {
		kinds = append(kinds,
			kind{"request, " + network + ", nothing ahead", 0, network, d.requestToByte}, kind{"request, " + network + ", pool", poolSize, network, d.requestToByte},
			kind{"snapctl, " + network + ", nothing ahead", 0, network, d.spawnToByte}, kind{"snapctl, " + network + ", pool", poolSize, network, d.spawnToByte})
	}
	times := make([][]time.Duration, len(kinds))
	for round := range c.rounds + 1 { // the first one warms up and does not count
		for i := range kinds {
			i = (i + round) % len(kinds)
			k := kinds[i]
			if err := d.resize(ctx, k.size); err != nil {
				return nil, err
			}
			time.Sleep(c.gap)
			t, err := k.first(ctx, image, k.network)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", k.name, err)
			}
			if round > 0 {
				times[i] = append(times[i], t)
			}
		}
	}
	var rows []row
	for i, k := range kinds {
		rows = append(rows, newRow(k.name, times[i], map[string][]time.Duration{"cold": times[0]}))
	}
	return rows, nil
}

func (d *daemon) socket() string { return filepath.Join(d.dir, "run", "snapd.sock") }

// resize changes the pool, and waits until it is as wanted.
func (d *daemon) resize(ctx context.Context, n int) error {
	var p control.Pool
	if _, err := control.Call(ctx, d.socket(), control.OpPool, control.PoolArgs{Size: &n}, &p, nil); err != nil {
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); len(p.Slots) != n || p.Bridge.Ready != n; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("the pool does not fill: %+v", p)
		}
		p = control.Pool{}
		if _, err := control.Call(ctx, d.socket(), control.OpPool, control.PoolArgs{}, &p, nil); err != nil {
			return err
		}
	}
	return nil
}

// requestToByte asks for a container as snapctl does.
func (d *daemon) requestToByte(ctx context.Context, image, network string) (t time.Duration, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	defer w.Close()
	var id [32]byte
	rand.Read(id[:]) //nolint:errcheck // it never fails
	a := control.CreateArgs{ID: hex.EncodeToString(id[:]), Image: image, Args: []string{"/bin/true"}, Network: network, Remove: true, Begin: true}
	begin := time.Now()
	var made control.Created
	if _, err := control.Call(ctx, d.socket(), control.OpCreate, a, &made, nil); err != nil {
		return 0, err
	}
	c, err := monitor.Attach(ctx, made.Socket, monitor.AttachArgs{Start: true}, monitor.IO{Stdout: w})
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if t, err = firstByte(r, begin); err != nil {
		return 0, err
	}
	exit, err := c.Wait(ctx, nil)
	if err == nil && exit.Code != 0 {
		err = fmt.Errorf("exit status %d: %s", exit.Code, exit.Error)
	}
	return t, err
}

// spawnToByte runs snapctl.
func (d *daemon) spawnToByte(ctx context.Context, image, network string) (t time.Duration, err error) {
	cmd := d.command(ctx, "run", "--rm", "--quiet", "--network", network, image)
	r, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	t, err = firstByte(r, begin)
	return t, errors.Join(err, cmd.Wait())
}

func firstByte(r io.Reader, begin time.Time) (time.Duration, error) {
	_, err := io.ReadFull(r, make([]byte, 1))
	return time.Since(begin), err
}

func goByteProgram(ctx context.Context, work string) ([]byte, error) {
	src, exe := filepath.Join(work, "byte.go"), filepath.Join(work, "byte")
	if err := os.WriteFile(src, []byte("package main\n\nimport \"os\"\n\nfunc main() { os.Stdout.WriteString(\"x\") }\n"), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", exe, src)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GO111MODULE=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go build: %w: %s", err, out)
	}
	return os.ReadFile(exe)
}

// byteProgram is a program that writes a byte: of a few instructions, so that
// what is timed is the start and not the program; on other machines one in Go.
func byteProgram(ctx context.Context, work string) ([]byte, error) {
	if runtime.GOARCH != "amd64" {
		return goByteProgram(ctx, work)
	}
	code := []byte{
		0xb8, 1, 0, 0, 0, 0xbf, 1, 0, 0, 0, // mov eax, 1 (write); mov edi, 1
		0x48, 0x8d, 0x35, 0x10, 0, 0, 0, // lea rsi, [rip+16]
		0xba, 1, 0, 0, 0, 0x0f, 0x05, // mov edx, 1; syscall
		0xb8, 0x3c, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05, // mov eax, 60 (exit); xor edi, edi; syscall
		'x',
	}
	const at, header = 0x400000, 64 + 56
	le := binary.LittleEndian
	h := append([]byte("\x7fELF"), 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	h = le.AppendUint16(h, 2)                        // ET_EXEC
	h = le.AppendUint16(h, 62)                       // EM_X86_64
	h = le.AppendUint32(h, 1)                        // version
	for _, v := range []uint64{at + header, 64, 0} { // entry, program headers, section headers
		h = le.AppendUint64(h, v)
	}
	h = le.AppendUint32(h, 0)
	for _, v := range []uint16{64, 56, 1, 0, 0, 0} {
		h = le.AppendUint16(h, v)
	}
	size := uint64(header + len(code))
	h = le.AppendUint32(h, 1) // PT_LOAD
	h = le.AppendUint32(h, 5) // readable, executable
	for _, v := range []uint64{0, at, at, size, size, 0x1000} {
		h = le.AppendUint64(h, v)
	}
	return append(h, code...), nil
}
