package network

import (
	"context"
	"testing"
)

// TestAttendAfterClose: nothing begins once Close has begun to wait.
func TestAttendAfterClose(t *testing.T) {
	s := &Service{}
	s.base, s.cancel = context.WithCancel(t.Context())
	ran := 0
	s.attend(func() { ran++ })
	s.reaping.Wait()
	s.cancel()
	s.attend(func() { ran++ })
	s.reaping.Wait()
	if ran != 1 {
		t.Errorf("%d have run, want the one before the end", ran)
	}
}
