package systemd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

func TestPath(t *testing.T) {
	for slice, want := range map[string]string{
		"-.slice": "/", "system.slice": "/system.slice", "a-b-c.slice": "/a.slice/a-b.slice/a-b-c.slice",
		"kubepods-besteffort-pod1_2.slice": "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice",
		"":                                 "", ".slice": "", "a": "", "a/b.slice": "", "-a.slice": "", "a-.slice": "", "a--b.slice": "", "..slice": "", "a b.slice": "", "a.scope": "",
	} {
		got, err := Path(slice)
		if slice == "..slice" { // a name like any other
			want = "/..slice"
		}
		if got != want || (err == nil) != (want != "") {
			t.Errorf("Path(%q) = %q, %v, want %q", slice, got, err, want)
		}
	}
}

func TestCheckUnit(t *testing.T) {
	for name, ok := range map[string]bool{"a-b.scope": true, `a\x2db:c_d@e.scope`: true, "a/b.scope": false, "a b": false, "ä": false, strings.Repeat("x", 256): false} {
		if err := CheckUnit(name); (err == nil) != ok {
			t.Errorf("CheckUnit(%q) = %v", name, err)
		}
	}
}

// A manager is a systemd of which a test says how it answers.
type manager struct {
	t      *testing.T
	socket string
	greet  string // instead of OK
	// answer gets a call, and writes what it likes.
	answer func(m *message, w io.Writer)
}

func (f *manager) listen() {
	f.socket = filepath.Join(f.t.TempDir(), "private")
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		f.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.serve(c)
			c.Close()
		}
	}()
	f.t.Cleanup(func() { l.Close(); <-done })
}

func (f *manager) serve(c net.Conn) {
	r := bufio.NewReader(c)
	for _, want := range []string{"\x00AUTH EXTERNAL ", "BEGIN\r\n"} {
		line, err := r.ReadString('\n')
		if err != nil || !strings.HasPrefix(line, want) {
			f.t.Errorf("the client says %q, %v, want %q", line, err, want)
			return
		}
		if want[0] == 0 {
			greet := "OK 0123456789abcdef\r\n"
			if f.greet != "" {
				greet = f.greet
			}
			if io.WriteString(c, greet); f.greet != "" {
				return
			}
		}
	}
	for {
		m, err := readMessage(r)
		if err != nil {
			return
		}
		f.answer(m, c)
	}
}

// reply is an answer, or with a name an error.
func reply(to *message, errorName, signature string, values ...string) []byte {
	m := &message{kind: methodReturn, serial: 1000 + to.serial, reply: to.serial, errorName: errorName, signature: signature, body: stringsBody(values)}
	if errorName != "" {
		m.kind = methodError
	}
	return m.encode()
}

func stringsBody(values []string) []byte {
	var e encoder
	for _, v := range values {
		e.string(v)
	}
	return e.b
}

func removed(job, unit, result string) []byte {
	var e encoder
	e.uint32(7)
	for _, s := range []string{job, unit, result} {
		e.string(s)
	}
	return (&message{kind: signal, serial: 5, path: managerPath, iface: managerIface, member: "JobRemoved", signature: "uoss", body: e.b}).encode()
}

func (f *manager) dial() *Conn {
	f.t.Helper()
	c, err := Dial(f.t.Context(), f.socket)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { c.Close() })
	return c
}

func TestStart(t *testing.T) {
	var body []byte
	for name, c := range map[string]struct {
		says func(m *message) [][]byte
		want string // of the error
		is   error
	}{
		"it is done": {says: func(m *message) [][]byte {
			return [][]byte{reply(m, "", "o", "/job/1"), removed("/job/1", "a.scope", "done")}
		}},
		"before the answer": {says: func(m *message) [][]byte {
			return [][]byte{removed("/job/1", "a.scope", "done"), reply(m, "", "o", "/job/1")}
		}},
		"others' jobs": {says: func(m *message) [][]byte {
			return [][]byte{removed("/job/1", "b.scope", "failed"), removed("/job/2", "a.scope", "failed"), reply(m, "", "o", "/job/1"), removed("/job/3", "a.scope", "failed"), removed("/job/1", "a.scope", "done")}
		}},
		"the job fails": {says: func(m *message) [][]byte {
			return [][]byte{reply(m, "", "o", "/job/1"), removed("/job/1", "a.scope", "failed")}
		}, want: "StartTransientUnit of a.scope: failed"},
		"it exists": {says: func(m *message) [][]byte {
			return [][]byte{reply(m, "org.freedesktop.systemd1.UnitExists", "s", "Unit a.scope already exists.")}
		}, want: "systemd: Unit a.scope already exists.", is: ErrExists},
		"an error of none":  {says: func(m *message) [][]byte { return [][]byte{reply(m, "x.y", "")} }, want: "systemd: x.y"},
		"a strange answer":  {says: func(m *message) [][]byte { return [][]byte{reply(m, "", "s", "x")} }, want: `a body of "s", want "o"`, is: errMessage},
		"no bytes of D-Bus": {says: func(m *message) [][]byte { return [][]byte{[]byte("HTTP/1.1 400 Bad Request\r\n\r\n")} }, is: errMessage},
		"a body of 4 GB": {says: func(m *message) [][]byte {
			b := reply(m, "", "")
			binary.LittleEndian.PutUint32(b[4:], 1<<32-1)
			return [][]byte{b}
		}, is: errMessage},
		"it goes in between": {says: func(m *message) [][]byte { return [][]byte{reply(m, "", "o", "/job/1")[:20]} }, is: ErrAbsent},
	} {
		t.Run(name, func(t *testing.T) {
			f := &manager{t: t}
			f.answer = func(m *message, w io.Writer) {
				if m.kind != methodCall || m.member != "StartTransientUnit" || m.path != managerPath || m.iface != managerIface || m.signature != "ssa(sv)a(sa(sv))" {
					t.Errorf("called with %+v", m)
				}
				body = m.body
				for _, b := range c.says(m) {
					w.Write(b)
				}
				if c.is == ErrAbsent {
					w.(net.Conn).Close()
				}
			}
			f.listen()
			err := f.dial().Start(t.Context(), "a.scope", []Property{
				{"Slice", "x.slice"}, {"PIDs", []uint32{7, 8}}, {"Delegate", true}, {"MemoryMax", uint64(1 << 40)}, {"AllowedCPUs", []byte{3}},
				{"DeviceAllow", []Device{{"/dev/char/1:3", "rwm"}, {"char-*", "m"}}},
			})
			if c.want == "" && c.is == nil && err != nil || (c.want != "" || c.is != nil) && (err == nil || !strings.Contains(err.Error(), c.want)) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("Start = %v, want %q, %v", err, c.want, c.is)
			}
		})
	}
	// Two strings, an array whose length is that of its elements, which begin at a multiple of 8.
	want := "\x07\x00\x00\x00a.scope\x00" + "\x04\x00\x00\x00fail\x00\x00\x00\x00"
	rest := "\x05\x00\x00\x00Slice\x00\x01s\x00\x00\x00\x00\x07\x00\x00\x00x.slice\x00" + "\x00\x00\x00\x00" +
		"\x04\x00\x00\x00PIDs\x00\x02au\x00\x00\x00\x00\x08\x00\x00\x00\x07\x00\x00\x00\x08\x00\x00\x00"
	if !bytes.HasPrefix(body, []byte(want)) || !bytes.HasPrefix(body[len(want)+8:], []byte(rest)) {
		t.Errorf("the body begins %q, want %q, a length and %q", body[:min(len(body), 120)], want, rest)
	}
}

func TestStopAndSet(t *testing.T) {
	var calls []string
	f := &manager{t: t, answer: func(m *message, w io.Writer) {
		calls = append(calls, m.member+" "+m.signature)
		switch m.member {
		case "StopUnit":
			if s, err := m.strings("ss"); err != nil || s[0] == "gone.scope" {
				w.Write(reply(m, "org.freedesktop.systemd1.NoSuchUnit", "s", "Unit gone.scope not loaded."))
				return
			}
			w.Write(reply(m, "", "o", "/job/9"))
			w.Write(removed("/job/9", "a.scope", "done"))
		case "ResetFailedUnit": // it has been collected
			w.Write(reply(m, "org.freedesktop.systemd1.NoSuchUnit", "s", "no"))
		case "SetUnitProperties":
			w.Write(reply(m, "", ""))
		}
	}}
	f.listen()
	c := f.dial()
	for _, unit := range []string{"a.scope", "gone.scope"} {
		if err := c.Stop(t.Context(), unit); err != nil {
			t.Errorf("Stop(%s) = %v", unit, err)
		}
	}
	if err := c.Set(t.Context(), "a.scope", []Property{{"TasksMax", Infinity}}); err != nil {
		t.Errorf("Set = %v", err)
	}
	if err := c.Set(t.Context(), "a.scope", []Property{{"TasksMax", 7}}); err == nil {
		t.Error("Set of an int worked, want an error: it has no type of D-Bus")
	}
	if got := strings.Join(calls, ", "); got != "StopUnit ss, ResetFailedUnit s, StopUnit ss, SetUnitProperties sba(sv)" {
		t.Errorf("called %s", got)
	}
}

func TestDialFails(t *testing.T) {
	if _, err := Dial(t.Context(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, ErrAbsent) {
		t.Errorf("Dial of nothing = %v, want ErrAbsent", err)
	}
	f := &manager{t: t, greet: "REJECTED EXTERNAL\r\n"}
	f.listen()
	if _, err := Dial(t.Context(), f.socket); err == nil || !strings.Contains(err.Error(), "REJECTED") {
		t.Errorf("Dial = %v, want that it does not let us in", err)
	}
}

func TestCanceled(t *testing.T) {
	asked := make(chan struct{})
	f := &manager{t: t, answer: func(*message, io.Writer) { close(asked) }}
	f.listen()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	if err := f.dial().Set(ctx, "a.scope", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Set = %v, want that it ends with its context", err)
	}
}

func FuzzMessage(f *testing.F) {
	f.Add(removed("/org/freedesktop/systemd1/job/1", "a.scope", "done"))
	f.Add(reply(&message{serial: 3}, "org.freedesktop.systemd1.NoSuchUnit", "s", "Unit a.scope not loaded."))
	f.Add([]byte("B\x04\x01\x01\x00\x00\x00\x04\x00\x00\x00\x01\x00\x00\x00\x08\x05\x01u\x00\x00\x00\x00\x09abcd"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := readMessage(bytes.NewReader(b))
		if err != nil {
			return
		}
		for _, signature := range []string{"o", "s", "uoss"} {
			if s, err := m.strings(signature); err == nil && len(s) != len(signature) {
				t.Errorf("strings(%q) = %q", signature, s)
			}
		}
		if m.order != binary.LittleEndian || m.senderName != "" {
			return
		}
		again, err := readMessage(bytes.NewReader(m.encode()))
		if err != nil || again.member != m.member || again.reply != m.reply || !bytes.Equal(again.body, m.body) {
			t.Errorf("encoded and read again it is %+v, %v, and was %+v", again, err, m)
		}
	})
}
