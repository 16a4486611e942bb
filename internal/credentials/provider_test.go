package credentials

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/snapfs/snapfs/layers/registry"
)

// response is a plugin's answer.
func response(kind, duration, auth string) string {
	return fmt.Sprintf(`{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":%q,"cacheDuration":%s,"auth":%s}`, kind, duration, auth)
}

func open(t *testing.T, opt ProviderOptions, config string) *Providers {
	t.Helper()
	dir := t.TempDir()
	opt.Config = filepath.Join(dir, "config.yaml")
	if opt.Bin == "" {
		opt.Bin = dir
	}
	if err := os.WriteFile(opt.Config, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := OpenProviders(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// execute runs programs as the tests' supervisor.
func execute(ctx context.Context, p Program) ([]byte, error) {
	cmd := exec.CommandContext(ctx, p.Path, p.Args...)
	cmd.Env = append(os.Environ(), p.Env...)
	cmd.Stdin = bytes.NewReader(p.Stdin)
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	text, _ := io.ReadAll(io.LimitReader(out, int64(p.Most)+1))
	out.Close()
	if len(text) > p.Most {
		return nil, errors.Join(errors.New("too much output"), cmd.Wait())
	}
	return text, cmd.Wait()
}

// TestPlugins runs real programs.
func TestPlugins(t *testing.T) {
	const right = `cat <<END
{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Registry","cacheDuration":"1h",
 "auth":{"*.dkr.ecr.*.amazonaws.com":{"username":"AWS","password":"top-secret-1"},"other.io":{"username":"x","password":"y"}}}
END
`
	for name, c := range map[string]struct {
		script string
		want   string
		warn   string
	}{
		"valid":           {`read -r r || true; [ "$r" = '{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","image":"1.dkr.ecr.eu.amazonaws.com/team/app","kind":"CredentialProviderRequest"}' ] || exit 9; [ "$1 $AWS_PROFILE" = "get-credentials example" ] || exit 8; ` + right, "top-secret-1", ""},
		"does not read":   {right, "top-secret-1", ""},
		"slow":            {"sleep 1000; " + right, "", "no answer in"},
		"huge":            {"cat /dev/zero", "", "too much"},
		"large":           {`printf '{"kind":"CredentialProviderResponse","x":"'; head -c 1048576 /dev/zero | tr '\0' x; echo '"}'`, "", "too much"},
		"another version": {strings.ReplaceAll(right, "io/v1", "io/v1beta1"), "", "credentialprovider.kubelet.k8s.io/v1"},
		"another kind":    {strings.ReplaceAll(right, "Response", "Request"), "", "kind"},
		"no cache key":    {strings.ReplaceAll(right, `"Registry"`, `"Everything"`), "", "cacheKeyType"},
		"bad duration":    {strings.ReplaceAll(right, `"1h"`, `"soon"`), "", "cacheDuration"},
		"bad key":         {strings.ReplaceAll(right, `other.io`, `/x`), "", "a key of auth"},
		"not JSON":        {"echo top-secret-1", "", "JSON"},
		"no output":       {"exit 0", "", "JSON"},
		"fails":           {right + "exit 3", "", "exit status 3"},
		"crashes":         {right + "kill -SEGV $$", "", "segmentation fault"},
		"not there":       {"", "", "no such file"},
		"null auth":       {strings.ReplaceAll(right[:strings.Index(right, `"auth"`)], `"1h",`, `"1h"}`) + "\nEND\n", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bin := t.TempDir()
			if c.script != "" {
				if err := os.WriteFile(filepath.Join(bin, "ecr-credential-provider"), []byte("#!/bin/sh\n"+c.script), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			var log logBuffer
			timeout := time.Minute
			if name == "slow" {
				timeout = 50 * time.Millisecond
			}
			p := open(t, ProviderOptions{Bin: bin, Exec: execute, Timeout: timeout, Log: log.logger()}, goodConfig)
			list, err := p.Credentials(t.Context(), registry.Ask{Host: "1.dkr.ecr.eu.amazonaws.com", Image: "1.dkr.ecr.eu.amazonaws.com/team/app"})
			if err != nil || (len(list) > 0) != (c.want != "") {
				t.Fatalf("Credentials = %v, %v, want %q; log %s", list, err, c.want, log.String())
			}
			if c.want != "" && (len(list) != 1 || list[0].Secret != c.want || list[0].User != "AWS" || time.Until(list[0].Ends) > time.Hour || time.Until(list[0].Ends) < 50*time.Minute) {
				t.Errorf("credential %q until %v", list[0].Secret, list[0].Ends)
			}
			if !strings.Contains(log.String(), c.warn) || c.warn == "" && log.String() != "" || strings.Contains(log.String(), "top-secret") {
				t.Errorf("log %q, want %q", log.String(), c.warn)
			}
		})
	}
}

type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }
func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}
func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// A plugin in a bubble.
type fakePlugin struct {
	mu    sync.Mutex
	runs  []string // images
	text  string
	err   error
	takes time.Duration
}

func (f *fakePlugin) exec(ctx context.Context, p Program) ([]byte, error) {
	var r struct{ Image string }
	if err := json.Unmarshal(p.Stdin, &r); err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.runs = append(f.runs, r.Image)
	text, err, takes := f.text, f.err, f.takes
	n := len(f.runs)
	f.mu.Unlock()
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return []byte(strings.ReplaceAll(text, "RUN", fmt.Sprint(n))), err
}

func (f *fakePlugin) set(text string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.text, f.err = text, err
}

func (f *fakePlugin) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.runs)
}

const allConfig = `apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - {name: p, matchImages: ["*.io", "*.io:5000"], defaultCacheDuration: "10m", apiVersion: credentialprovider.kubelet.k8s.io/v1}
`

func first(t *testing.T, p *Providers, image string, change ...func(*registry.Ask)) string {
	t.Helper()
	ask := registry.Ask{Image: image}
	for _, f := range change {
		f(&ask)
	}
	list, err := p.Credentials(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) == 0 {
		return ""
	}
	return list[0].Secret
}

func anew(a *registry.Ask) { a.Anew = true }

// TestProviderCache: answers are kept for what the plugin says, as long as it says.
func TestProviderCache(t *testing.T) {
	const auth = `{"*.io":{"username":"u","password":"RUN"},"*.io:5000":{"username":"u","password":"RUN"}}`
	for _, c := range []struct {
		name, kind, duration string
		images               []string
		want                 string // the run that each answer is from
	}{
		{"image", "Image", `"1m"`, []string{"a.io/x", "a.io/x", "a.io/y", "b.io/x", "a.io/x"}, "1 1 2 3 1"},
		{"registry", "Registry", `"1m"`, []string{"a.io/x", "a.io/y", "b.io/x", "a.io:5000/x", "b.io/z"}, "1 1 2 3 2"},
		{"global", "Global", `"1m"`, []string{"a.io/x", "a.io/y", "b.io/x"}, "1 1 1"},
		{"not at all", "Global", `"0s"`, []string{"a.io/x", "a.io/x"}, "1 2"},
		{"as configured", "Global", `null`, []string{"a.io/x", "a.io/x"}, "1 1"},
		{"of others", "Global", `"1m"`, []string{"a.com/x", "a.io/x"}, " 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakePlugin{text: response(c.kind, c.duration, auth)}
				p := open(t, ProviderOptions{Exec: f.exec}, allConfig)
				defer p.Close()
				var got []string
				for _, image := range c.images {
					got = append(got, first(t, p, image))
				}
				if s := strings.Join(got, " "); s != c.want {
					t.Errorf("answers are from runs %q, want %q", s, c.want)
				}
				before := f.count()
				time.Sleep(time.Minute)
				if c.duration == `"1m"` && (first(t, p, "a.io/x") == "" || f.count() != before+1) {
					t.Errorf("%d runs after the answer had ended, want 1", f.count()-before)
				}
			})
		})
	}
}

// TestProviderAnew: what was refused is asked for again, but not at once; what is
// about to end is replaced, and serves on when that fails.
func TestProviderAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakePlugin{text: response("Registry", `"1h"`, `{"a.io":{"username":"u","password":"RUN"}}`)}
		p := open(t, ProviderOptions{Exec: f.exec}, allConfig)
		defer p.Close()
		expect := func(what, want string, runs int, change ...func(*registry.Ask)) {
			t.Helper()
			before := f.count()
			if got := first(t, p, "a.io/x", change...); got != want || f.count()-before != runs {
				t.Errorf("%s: %q after %d runs, want %q after %d", what, got, f.count()-before, want, runs)
			}
		}
		end := time.Now().Add(time.Hour)
		beyond := func(a *registry.Ask) { a.Beyond = end }
		expect("first", "1", 1)
		expect("refused at once", "1", 0, anew)
		time.Sleep(moment)
		expect("refused", "2", 1, anew)
		time.Sleep(time.Minute)
		end = time.Now().Add(30 * time.Minute)
		expect("that lasts half an hour", "2", 0, beyond)
		end = time.Now().Add(59 * time.Minute)
		expect("that lasts longer", "3", 1, beyond)
		expect("again", "3", 0)
		f.set("", errors.New("out of order"))
		end = end.Add(time.Hour)
		time.Sleep(moment)
		expect("the renewal fails", "3", 1, beyond)
		expect("and is not tried at once", "3", 0, beyond)
		time.Sleep(brief)
		expect("but later", "3", 1, beyond)
		time.Sleep(time.Hour)
		expect("when all has ended", "", 1)
		expect("briefly", "", 0)
		time.Sleep(moment)
		expect("briefly, still", "", 0)
		expect("but anew", "", 1, anew)
		f.set(response("Registry", `"1h"`, `{}`), nil)
		time.Sleep(brief)
		expect("nothing", "", 1)
		expect("nothing, briefly", "", 0)
		f.set(response("Registry", `"1h"`, `{"a.io":{"username":"u","password":"new"}}`), nil)
		time.Sleep(brief)
		expect("something", "new", 1)
	})
}

// TestProviderFlight: one run for all who ask about a registry, and it outlives them.
func TestProviderFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakePlugin{text: response("Registry", `"1h"`, `{"a.io":{"username":"u","password":"RUN"}}`), takes: 5 * time.Second}
		p := open(t, ProviderOptions{Exec: f.exec}, allConfig)
		defer p.Close()
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := p.Credentials(ctx, registry.Ask{Image: "a.io/first"}); !errors.Is(err, context.Canceled) {
				t.Errorf("Credentials = %v, want Canceled", err)
			}
		})
		synctest.Wait()
		for i := range 20 {
			all.Go(func() {
				if got := first(t, p, fmt.Sprintf("a.io/x%d", i%3)); got != "1" {
					t.Errorf("answer %q, want that of the one run", got)
				}
			})
		}
		synctest.Wait()
		cancel()
		all.Wait()
		if f.count() != 1 {
			t.Errorf("%d runs, want 1", f.count())
		}
	})
}

// TestProviderOrder: more specific keys come first, and providers in their order.
func TestProviderOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakePlugin{text: response("Image", `"1h"`, `{"a.io":{"username":"u","password":"host"},"a.io/team":{"username":"u","password":"team"},"*.io":{"username":"u","password":"all"},"b.io":{"username":"u","password":"b"},"a.io/x":{"username":"u","password":""}}`)}
		p := open(t, ProviderOptions{Exec: f.exec}, allConfig)
		defer p.Close()
		list, err := p.Credentials(t.Context(), registry.Ask{Image: "a.io/team/x"})
		if err != nil || len(list) != 3 || list[0].Secret != "team" || list[1].Secret != "host" || list[2].Secret != "all" {
			t.Errorf("Credentials = %v, %v", list, err)
		}
	})
}

// TestProviderClose ends what runs.
func TestProviderClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakePlugin{takes: 20 * time.Hour}
		p := open(t, ProviderOptions{Exec: f.exec, Timeout: 30 * time.Hour}, allConfig)
		var all sync.WaitGroup
		all.Go(func() { first(t, p, "a.io/x") })
		synctest.Wait()
		start := time.Now()
		p.Close()
		all.Wait()
		if d := time.Since(start); d != 0 {
			t.Errorf("Close took %v", d)
		}
	})
}

func FuzzResponse(f *testing.F) {
	f.Add([]byte(response("Registry", `"1h"`, `{"a.io":{"username":"u","password":"secret-1"}}`)))
	f.Add([]byte(response("Image", `"-1h"`, `null`)))
	f.Add([]byte(response("Global", `"2562047h47m16.854775807s"`, `{"[":{}}`)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		kind, a, err := parseResponse(raw, "credentialprovider.kubelet.k8s.io/v1", time.Minute)
		if err != nil {
			if strings.Contains(err.Error(), "secret-1") {
				t.Errorf("the secret is in the message: %v", err)
			}
			return
		}
		if a.ends.Before(a.at) || len(a.auths) > maxAuths || cacheKey(kind, "a.io/x") == "" || a.empty != (len(a.auths) == 0) {
			t.Errorf("answer %+v", a)
		}
		a.credentials("p", "a.io/x")
	})
}
