package runtime

import (
	"testing"
	"unsafe"
)

// TestLayout pins what vm_*.s knows.
func TestLayout(t *testing.T) {
	var o op
	var out outcome
	for _, c := range []struct {
		name      string
		got, want uintptr
	}{
		{"op", unsafe.Sizeof(o), 96}, {"op.arg", unsafe.Offsetof(o.arg), 8}, {"op.flags", unsafe.Offsetof(o.flags), 56},
		{"op.okErr", unsafe.Offsetof(o.okErr), 64}, {"op.skipErr", unsafe.Offsetof(o.skipErr), 72},
		{"op.skipOK", unsafe.Offsetof(o.skipOK), 80}, {"op.result", unsafe.Offsetof(o.result), 88},
		{"outcome.errno", unsafe.Offsetof(out.errno), 8}, {"outcome.denied", unsafe.Offsetof(out.denied), 16},
		{"outcome.report", unsafe.Offsetof(out.report), 24}, {"cloneArgs", unsafe.Sizeof(cloneArgs{}), 88},
	} {
		if c.got != c.want {
			t.Errorf("%s is at %d, want %d", c.name, c.got, c.want)
		}
	}
}
