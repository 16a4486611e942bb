package main

import (
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/layers/objects"
)

// A disk says whether the background may store more.
type disk struct {
	root           string
	limit, reserve int64
	usage          func() (objects.Usage, error)
	log            *slog.Logger

	mu   sync.Mutex
	at   time.Time // when used was found out
	used int64
}

// measureEvery is how often the store is walked to see how large it is: it may
// grow by what the link brings meanwhile beyond its limit.
const measureEvery = 10 * time.Second

// room is fetch.Options.Room. Where the size cannot be found out, there is room:
// the disk itself will tell.
func (d *disk) room() bool {
	var st unix.Statfs_t
	if err := unix.Statfs(d.root, &st); err == nil && int64(st.Bavail)*st.Bsize < d.reserve {
		return false
	}
	return d.limit == 0 || d.size() < d.limit
}

func (d *disk) size() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.at) < measureEvery {
		return d.used
	}
	u, err := d.usage()
	if err != nil {
		d.log.Warn("size of the store", "err", err)
	}
	d.used, d.at = u.Bytes(), time.Now()
	return d.used
}
