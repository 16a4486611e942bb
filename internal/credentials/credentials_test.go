package credentials

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/snapfs/snapfs/layers/registry"
)

type fixed struct {
	list []registry.Credential
	anew []registry.Credential // if asked so
	err  error
	asks int
}

func (f *fixed) Credentials(_ context.Context, ask registry.Ask) ([]registry.Credential, error) {
	f.asks++
	if ask.Anew {
		return f.anew, f.err
	}
	return f.list, f.err
}

func secrets(words string) (list []registry.Credential) {
	for w := range strings.FieldsSeq(words) {
		word, lasts, timed := strings.Cut(w, "/")
		c := registry.Credential{User: "u", Secret: word, Source: "test"}
		if timed {
			d, err := time.ParseDuration(lasts)
			if err != nil {
				panic(err)
			}
			c.Ends = time.Now().Add(d)
		}
		list = append(list, c)
	}
	return list
}

func TestChain(t *testing.T) {
	broken := errors.New("out of order")
	for _, c := range []struct {
		name           string
		image, host    fixed
		ask            registry.Ask
		refused        string
		beyond         time.Duration
		want           string
		err            error
		imageN, hostsN int // questions
	}{
		{"first", fixed{list: secrets("a b")}, fixed{list: secrets("c")}, registry.Ask{}, "", 0, "a", nil, 1, 0},
		{"second", fixed{list: secrets("a b")}, fixed{list: secrets("c")}, registry.Ask{}, "a", 0, "b", nil, 1, 0},
		{"next source", fixed{list: secrets("a b")}, fixed{list: secrets("c")}, registry.Ask{Anew: true}, "a b", 0, "c", nil, 1, 1},
		{"asked anew", fixed{list: secrets("a b"), anew: secrets("d")}, fixed{list: secrets("c")}, registry.Ask{Anew: true}, "a b c", 0, "d", nil, 2, 1},
		{"not anew", fixed{list: secrets("a b"), anew: secrets("d")}, fixed{list: secrets("c")}, registry.Ask{}, "a b c", 0, "", nil, 1, 1},
		{"nothing", fixed{}, fixed{}, registry.Ask{Anew: true}, "", 0, "", nil, 2, 2},
		{"mirror", fixed{list: secrets("a")}, fixed{list: secrets("c")}, registry.Ask{Mirror: true}, "", 0, "c", nil, 0, 1},
		{"mirror, the image's", fixed{list: secrets("a")}, fixed{list: secrets("c")}, registry.Ask{Mirror: true}, "c", 0, "a", nil, 1, 1},
		{"an error passed over", fixed{err: broken}, fixed{list: secrets("c")}, registry.Ask{}, "", 0, "c", nil, 1, 1},
		{"an error", fixed{err: broken}, fixed{}, registry.Ask{}, "", 0, "", broken, 1, 1},
		{"ended", fixed{list: secrets("a/-1h b")}, fixed{}, registry.Ask{}, "", 0, "b", nil, 1, 0},
		{"ended, but nothing else", fixed{list: secrets("a/-1h b/-2h")}, fixed{}, registry.Ask{}, "", 0, "a", nil, 1, 1},
		{"that lasts", fixed{list: secrets("a/1h b/3h")}, fixed{}, registry.Ask{}, "", 2 * time.Hour, "b", nil, 1, 0},
		{"that lasts, of another", fixed{list: secrets("a/1h")}, fixed{list: secrets("c")}, registry.Ask{}, "", 2 * time.Hour, "c", nil, 1, 1},
		{"that would last", fixed{list: secrets("a/1h")}, fixed{}, registry.Ask{}, "", 2 * time.Hour, "a", nil, 1, 1},
		{"no secret in it", fixed{list: []registry.Credential{{User: "u"}}}, fixed{list: secrets("c")}, registry.Ask{}, "", 0, "c", nil, 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			chain := &Chain{ByImage: []Source{&c.image}, ByHost: []Source{&c.host}}
			c.ask.Refused = secrets(c.refused)
			if c.beyond != 0 {
				c.ask.Beyond = time.Now().Add(c.beyond)
			}
			got, err := chain.Lookup(t.Context(), c.ask)
			if got.Secret != c.want || !errors.Is(err, c.err) || c.image.asks != c.imageN || c.host.asks != c.hostsN {
				t.Errorf("Lookup = %q, %v after %d and %d questions, want %q, %v after %d and %d", got.Secret, err, c.image.asks, c.host.asks, c.want, c.err, c.imageN, c.hostsN)
			}
		})
	}
}

// TestDocker: that a host has nothing is remembered for a moment, and not when
// that did not help.
func TestDocker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asks, secret := 0, ""
		var fail error
		d := &Docker{Lookup: func(ctx context.Context, ask registry.Ask) (registry.Credential, error) {
			asks++
			if len(ask.Refused) > 0 || ask.Anew {
				t.Errorf("question %+v", ask)
			}
			return registry.Credential{User: "u", Secret: secret}, errors.Join(fail, ctx.Err())
		}}
		expect := func(what, want string, n int, ask registry.Ask) {
			t.Helper()
			asks = 0
			ask.Host = "r.example"
			list, err := d.Credentials(t.Context(), ask)
			got := fmt.Sprint(err)
			if err == nil {
				got = ""
			}
			if len(list) > 0 {
				got = list[0].Secret
			}
			if got != want || asks != n {
				t.Errorf("%s: %q after %d questions, want %q after %d", what, got, asks, want, n)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := d.Credentials(ctx, registry.Ask{Host: "r.example"}); !errors.Is(err, context.Canceled) {
			t.Errorf("Credentials = %v", err)
		}
		expect("nothing", "", 1, registry.Ask{})
		expect("nothing, at once", "", 0, registry.Ask{})
		expect("nothing, anew at once", "", 0, registry.Ask{Anew: true})
		time.Sleep(moment)
		expect("nothing, soon", "", 0, registry.Ask{})
		secret = "s"
		expect("after a login", "s", 1, registry.Ask{Anew: true, Refused: secrets("x")})
		expect("always", "s", 1, registry.Ask{})
		secret, fail = "", errors.New("out of order")
		expect("broken", "out of order", 1, registry.Ask{})
		expect("broken, at once", "out of order", 0, registry.Ask{})
		fail = nil
		time.Sleep(brief)
		expect("well again", "", 1, registry.Ask{})
		for i := range 2 * maxHosts {
			d.Credentials(t.Context(), registry.Ask{Host: fmt.Sprint(i)})
		}
		if len(d.none) > maxHosts {
			t.Errorf("%d hosts are remembered", len(d.none))
		}
	})
}

// TestDockerFlight: one lookup for all, and if who made it gives up, another's.
func TestDockerFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asks atomic.Int64
		d := &Docker{Lookup: func(ctx context.Context, ask registry.Ask) (registry.Credential, error) {
			asks.Add(1)
			select {
			case <-time.After(time.Second):
				return registry.Credential{User: "u", Secret: "s"}, nil
			case <-ctx.Done():
				return registry.Credential{}, ctx.Err()
			}
		}}
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := d.Credentials(ctx, registry.Ask{Host: "r.example"}); !errors.Is(err, context.Canceled) {
				t.Errorf("Credentials = %v, want Canceled", err)
			}
		})
		synctest.Wait()
		for range 20 {
			all.Go(func() {
				list, err := d.Credentials(t.Context(), registry.Ask{Host: "r.example"})
				if len(list) != 1 || list[0].Secret != "s" || err != nil {
					t.Errorf("Credentials = %v, %v", list, err)
				}
			})
		}
		synctest.Wait()
		cancel()
		all.Wait()
		if asks.Load() != 2 {
			t.Errorf("%d lookups, want 2: that which was given up, and another", asks.Load())
		}
	})
}

// TestDockerPanic: a lookup that panics does not keep the others waiting for ever.
func TestDockerPanic(t *testing.T) {
	calls := 0
	d := &Docker{Lookup: func(context.Context, registry.Ask) (registry.Credential, error) {
		if calls++; calls == 1 {
			panic("bug")
		}
		return registry.Credential{Secret: "s"}, nil
	}}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		_, _ = d.Credentials(t.Context(), registry.Ask{Host: "r.example"})
	}()
	list, err := d.Credentials(t.Context(), registry.Ask{Host: "r.example"})
	if err != nil || len(list) != 1 || calls != 2 {
		t.Errorf("after a panic: %d credentials, %v, %d calls", len(list), err, calls)
	}
}
