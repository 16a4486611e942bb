package images

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestUses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var u uses
		held := func(when string, want bool) {
			t.Helper()
			if got := u.held("sha256:a"); got != want {
				t.Errorf("%s: held = %t", when, got)
			}
		}
		one, two := u.hold("sha256:a"), u.hold("sha256:a")
		held("twice", true)
		one()
		one()
		held("after one has let go, twice", true)
		two()
		held("after both", false)
		if u.held("sha256:b") {
			t.Error("another is held")
		}

		u.until("/m", u.hold("sha256:a"))
		held("prepared", true)
		u.settle("/elsewhere")
		held("another mount is recorded", true)
		u.settle("/m")
		held("recorded", false)
		u.settle("/m")

		u.until("/m", u.hold("sha256:a"))
		time.Sleep(preparedFor - 1)
		held("a moment before", true)
		u.until("/m", u.hold("sha256:a")) // asked again: the first is over, the second counts
		time.Sleep(preparedFor - 1)
		held("asked again", true)
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		held("nobody has come", false)
		u.settle("/m")
		held("somebody came late", false)
		if len(u.prepared) != 0 || len(u.n) != 0 {
			t.Errorf("left: %+v", &u)
		}
	})
}
