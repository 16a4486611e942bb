package rpc

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/snapfs/snapfs/internal/meter"
)

// calls counts calls. Methods that no service has are never counted, so there is
// a bound on how much is remembered.
type calls struct {
	open atomic.Int64

	mu sync.Mutex
	by map[string]*method
}

type method struct {
	took  meter.Histogram
	codes map[codes.Code]int64 // guarded by calls.mu
}

func (c *calls) count(name string, code codes.Code, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.by[name]
	if m == nil {
		m = &method{codes: map[codes.Code]int64{}}
		if c.by == nil {
			c.by = map[string]*method{}
		}
		c.by[name] = m
	}
	m.codes[code]++
	m.took.Observe(took)
}

// A Method is what has been asked for under one name.
type Method struct {
	Name  string // "/SERVICE/METHOD"
	Took  meter.Counts
	Codes []CodeCount // sorted by name
}

// A CodeCount is how many calls had an outcome.
type CodeCount struct {
	Code string // as gRPC calls it: "OK", "AlreadyExists"
	N    int64
}

// Methods returns what has been counted so far, sorted by name.
func (s *Server) Methods() (all []Method) {
	s.calls.mu.Lock()
	defer s.calls.mu.Unlock()
	for name, m := range s.calls.by {
		x := Method{Name: name, Took: m.took.Counts()}
		for code, n := range m.codes {
			x.Codes = append(x.Codes, CodeCount{code.String(), n})
		}
		slices.SortFunc(x.Codes, func(a, b CodeCount) int { return cmp.Compare(a.Code, b.Code) })
		all = append(all, x)
	}
	slices.SortFunc(all, func(a, b Method) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// Open is how many calls are under way.
func (s *Server) Open() int64 { return s.calls.open.Load() }
