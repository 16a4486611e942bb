package oci

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/snapfs/snapfs/runtime"
)

// A connection is between this process's terminal and that of a container.
type connection struct {
	tty     *os.File
	restore func() error
	output  sync.WaitGroup
}

// connect copies between the standard streams and a process's terminal.
func (c *CLI) connect(p *runtime.Process) (*connection, error) {
	t := &connection{tty: p.Console(), restore: func() error { return nil }}
	if fd := int(c.Stdin.Fd()); term.IsTerminal(fd) {
		old, err := term.MakeRaw(fd)
		if err != nil {
			return nil, err
		}
		t.restore = func() error { return term.Restore(fd, old) }
	}
	_ = c.resize(p)                                         // there may be no terminal here
	t.output.Go(func() { _, _ = io.Copy(c.Stdout, t.tty) }) // ends with EIO after the last process inside, or by close
	go func() { _, _ = io.Copy(t.tty, c.Stdin) }()          // ends with this process: a read of a terminal cannot be stopped
	return t, nil
}

// close lets what is still on its way come through and gives the terminal back.
func (t *connection) close() {
	_ = t.tty.SetReadDeadline(time.Now().Add(time.Second)) // a process left behind may hold it
	t.output.Wait()
	_ = errors.Join(t.tty.Close(), t.restore())
}

// resize gives a process's terminal the size of this one.
func (c *CLI) resize(p *runtime.Process) error {
	w, h, err := term.GetSize(int(c.Stdout.Fd()))
	if err != nil {
		return err
	}
	return p.Resize(uint16(h), uint16(w))
}
