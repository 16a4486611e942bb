package supervisor

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestUntouched(t *testing.T) {
	const smaps = `00400000-00a00000 r-xp 00000000 fe:00 17 /bin/snapd
Rss:                8280 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me sd
00a00000-00b00000 r--p 00600000 fe:00 17 /bin/snapd
Anonymous:             4 kB
00b00000-00c00000 rw-p 00700000 fe:00 17 /bin/snapd
Anonymous:             0 kB
00c00000-00d00000 r--p 00700000 fe:00 17 /bin/snapd-other
Anonymous:             0 kB
00d00000-00e00000 r--p 00800000 fe:00 17 /bin/snapd
Rss:                   0 kB
Anonymous:             0 kB
7ffd0000-7ffe0000 r-xp 00000000 00:00 0 [vdso]
Anonymous:             0 kB
`
	got, err := untouched(strings.NewReader(smaps), "/bin/snapd")
	if want := []span{{0x400000, 0xa00000}, {0xd00000, 0xe00000}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%x, %v, want %x", got, err, want)
	}
}

// TestSlim: the program takes less memory, and goes on.
func TestSlim(t *testing.T) {
	rss := func() (sum int) {
		b, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscanf(string(b[bytes.Index(b, []byte("RssFile:")):]), "RssFile: %d kB", &sum); err != nil {
			t.Fatal(err)
		}
		return sum
	}
	before := rss()
	if err := slim(); err != nil {
		t.Fatal(err)
	}
	if after := rss(); after >= before {
		t.Errorf("%d kB of the program are in memory, and were %d", after, before)
	}
}
