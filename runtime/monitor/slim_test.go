package monitor

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestSlim: memory is given back once when nobody asks for anything any more, and again after somebody did; not by
// a monitor that nobody has asked for anything.
func TestSlim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		m, n := &Monitor{stirred: make(chan struct{}, 1)}, 0
		var done sync.WaitGroup
		done.Go(func() { slim(ctx, m.stirred, func() { n++ }) })
		for _, row := range []struct {
			stir  bool
			after time.Duration
			want  int
		}{
			{false, time.Hour, 0},
			{true, idleAfter - 1, 0},
			{true, idleAfter - 1, 0},
			{true, idleAfter + 1, 1},
			{false, time.Hour, 1},
			{true, idleAfter + 1, 2},
		} {
			if row.stir {
				m.stir()
				m.stir() // does not wait
			}
			time.Sleep(row.after)
			if synctest.Wait(); n != row.want {
				t.Errorf("after %+v: %d times, want %d", row, n, row.want)
			}
		}
		cancel()
		done.Wait()
	})
}

func TestAnonymous(t *testing.T) {
	for line, want := range map[string]bool{
		"c000000000-c000400000 rw-p 00000000 00:00 0 ":                                  true,
		"c000000000-c000400000 rw-p 00000000 00:00 0                  [anon: Go: heap]": true,
		"c000400000-c004000000 ---p 00000000 00:00 0 ":                                  false,
		"00400000-00500000 rw-p 00001000 fd:00 1234                   /bin/snapctl":     false,
		"7f0000000000-7f0000200000 rw-s 00000000 00:01 77 /dev/zero":                    false,
		"c000400000-c000000000 rw-p 00000000 00:00 0":                                   false,
		"": false, "x-y rw-p 0 0 0": false,
	} {
		if from, to, ok := anonymous(line); ok != want || ok && from >= to {
			t.Errorf("anonymous(%q) = %x, %x, %v, want %v", line, from, to, ok, want)
		}
	}
	noHugePages() // does no harm
}
