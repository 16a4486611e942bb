package monitor

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzStat: whatever a program calls itself, the numbers behind that are the kernel's.
func FuzzStat(f *testing.F) {
	for _, comm := range []string{"sh", "a b", ") R 1 2 3", "((", "\n", ""} {
		f.Add(comm)
	}
	f.Fuzz(func(t *testing.T, comm string) {
		line := []byte(fmt.Sprintf("7 (%s) S 1 7 7 0 -1 4194304 100 0 0 0 3 4 0 0 20 0 1 0 4711 2 3", comm))
		p, err := parseStat(line)
		if err != nil || p.State != "S" || p.PPid != 1 || p.Ticks != 7 || p.Args[0] != "["+comm+"]" {
			t.Errorf("parseStat(%q) = %+v, %v", line, p, err)
		}
		if start, err := parseStartTime(line); err != nil || start != 4711 {
			t.Errorf("parseStartTime(%q) = %d, %v", line, start, err)
		}
		parseStat([]byte(comm)) // and no line is too broken
		parseStartTime([]byte(comm))
	})
}

func FuzzListeners(f *testing.F) {
	f.Add([]byte("sl local\n 0: 00000000:1F90 00000000:0000 0A 0:0 00:0 0 0 0 4711 1\n"), uint16(8080))
	f.Fuzz(func(t *testing.T, b []byte, port uint16) {
		for _, inode := range listeners(bytes.NewReader(b), port) {
			if !bytes.Contains(b, []byte(inode)) || !bytes.Contains(b, fmt.Appendf(nil, ":%04X", port)) {
				t.Errorf("%q has %s at port %d", b, inode, port)
			}
		}
	})
}

func FuzzSignal(f *testing.F) {
	for _, s := range []string{"TERM", "SIGRTMIN+3", "rtmax-1", "64", "-1", "SIGRTMIN"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := ParseSignal(s); err == nil && (n < 1 || n > maxSignal) {
			t.Errorf("ParseSignal(%q) = %d", s, n)
		}
		if n, err := parseSignal(s, unix.SIGKILL); err == nil && s == "" && n != unix.SIGKILL {
			t.Errorf("the default became %d", n)
		}
	})
}

// FuzzLine: how output is cut into reads changes nothing about the line that is waited for.
func FuzzLine(f *testing.F) {
	f.Add("ready$", "a\nready\nb", uint(3))
	f.Fuzz(func(t *testing.T, pattern, out string, at uint) {
		c, err := parseReady("line=" + pattern)
		if err != nil {
			return
		}
		hit := func(parts ...string) bool {
			w := newLineWatch(c.line)
			s := lineScan{w: w}
			for _, p := range parts {
				s.write([]byte(p))
			}
			s.end()
			return w.hit()
		}
		n := int(at % uint(len(out)+1))
		if hit(out) != hit(out[:n], out[n:]) || hit(out) != hit(strings.Split(out, "")...) && len(out) == len([]rune(out)) {
			t.Errorf("%q in %q: depends on where it is cut, such as at %d", pattern, out, n)
		}
	})
}
