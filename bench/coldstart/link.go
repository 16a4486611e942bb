package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/snapfs/snapfs/bench/link"
)

// A path is a link to the registry and the address it begins at.
type path struct {
	name string // as it was given: RATE/RTT
	link *link.Link
	host string
}

// parseLink reads RATE/RTT, as 100M/20ms: bits per second, with k, M or G, and
// a duration. 0 is no limit.
func parseLink(s string) (*path, error) {
	rate, rtt, _ := strings.Cut(s, "/")
	bits, err := parseRate(rate)
	if err != nil {
		return nil, fmt.Errorf("link %q: %w", s, err)
	}
	p := &path{name: s, link: &link.Link{BitsPerSecond: bits}}
	if rtt != "" && rtt != "0" {
		if p.link.RTT, err = time.ParseDuration(rtt); err != nil || p.link.RTT < 0 {
			return nil, fmt.Errorf("link %q: want RATE/ROUNDTRIP, as 100M/20ms", s)
		}
	}
	return p, nil
}

func parseRate(s string) (int64, error) {
	unit := 1.0
	if n := len(s); n > 0 {
		if u := map[byte]float64{'k': 1e3, 'M': 1e6, 'G': 1e9}[s[n-1]]; u != 0 {
			unit, s = u, s[:n-1]
		}
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || !(f >= 0 && f*unit < 1e15) {
		return 0, fmt.Errorf("rate %q: want bits per second, as 100M", s)
	}
	return int64(f * unit), nil
}

// seconds is the least time that n bytes take over the link.
func (p *path) seconds(n int64) float64 {
	if p.link.BitsPerSecond == 0 {
		return 0
	}
	return float64(n) * 8 / float64(p.link.BitsPerSecond)
}

// serve carries connections to target until ctx ends.
func (p *path) serve(ctx context.Context, target string, seen func(int)) (wait func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p.link.Arrived, p.host = seen, l.Addr().String()
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.link.Serve(ctx, l, target)
	}()
	return func() { <-done }, nil
}
