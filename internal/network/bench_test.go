package network

import (
	"testing"
	"time"

	"github.com/snapfs/snapfs/internal/control"
)

// BenchmarkAttach is the network's part of a start, with a pause before each as
// nobody starts containers back to back, and without what the kernel does of old ones meanwhile.
func BenchmarkAttach(b *testing.B) {
	for name, ports := range map[string][]control.Port{"plain": nil, "published": {tcp(8080, 80)}} {
		b.Run(name, func(b *testing.B) {
			s := newStand(b)
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				time.Sleep(50 * time.Millisecond)
				b.StartTimer()
				e, ns, err := s.Attach(b.Context(), Request{ID: id(i), Ports: ports})
				b.StopTimer()
				must(b, err)
				ns.Close()
				s.Release(id(i), e.Serial)
				b.StartTimer()
			}
		})
	}
}
