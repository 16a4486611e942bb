package main

import (
	"errors"
	"log/slog"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/snapfs/snapfs/layers/objects"
)

func TestRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		used, walks := int64(50), 0
		var failure error
		d := &disk{root: t.TempDir(), log: slog.New(slog.DiscardHandler), usage: func() (objects.Usage, error) {
			walks++
			return objects.Usage{ObjectBytes: used}, failure
		}}
		if !d.room() || walks > 0 {
			t.Errorf("no room without a limit, or %d walks", walks)
		}
		d.limit = 100
		for range 3 {
			if !d.room() {
				t.Error("no room at 50 of 100")
			}
		}
		used = 100
		if !d.room() || walks != 1 {
			t.Errorf("measured %d times at once", walks)
		}
		time.Sleep(measureEvery)
		if d.room() {
			t.Error("room at 100 of 100")
		}
		used, failure = 0, errors.New("walk")
		time.Sleep(measureEvery)
		if !d.room() {
			t.Error("no room when the size is not known")
		}
		d.reserve = math.MaxInt64
		if d.room() {
			t.Error("room where more has to stay free than there is")
		}
	})
}
