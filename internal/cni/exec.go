package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

// runner is how libcni runs plugins: by the Host.
type runner struct{ s *Service }

var _ invoke.Exec = (*runner)(nil)

// maxWords bounds what is repeated of a plugin's own words, bytes.
const maxWords = 1000

// ExecPlugin implements invoke.Exec. Of the environment only what is CNI's is
// passed: the rest is that of this process, and the supervisor has its own.
func (r *runner) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	var env []string
	command, id := "", ""
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		switch {
		case name == "TRACEPARENT" || name == "TRACESTATE":
		case !strings.HasPrefix(name, "CNI_"):
			continue
		case name == "CNI_COMMAND":
			command = value
		case name == "CNI_CONTAINERID":
			id = value
		}
		env = append(env, kv)
	}
	out, complaint, err := r.s.Host.RunPlugin(ctx, path, stdin, env, "cni/"+id)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	if err != nil {
		return nil, &PluginError{Path: path, Command: command, Words: words(out, complaint), Err: err}
	}
	if len(complaint) > 0 {
		r.s.Log.Debug("a plugin says", "plugin", path, "command", command, "words", words(nil, complaint))
	}
	if command == "ADD" {
		if err := checkResult(out); err != nil {
			return nil, &PluginError{Path: path, Command: command, Words: words(out, complaint), Err: err}
		}
	}
	return out, nil
}

// FindInPath implements invoke.Exec.
func (r *runner) FindInPath(plugin string, dirs []string) (string, error) {
	path, err := invoke.FindInPath(plugin, dirs)
	if err != nil {
		return "", fmt.Errorf("plugin %q is not in %s (network.cni_plugins of the daemon's configuration)", plugin, strings.Join(dirs, ", "))
	}
	return path, nil
}

// Decode implements invoke.Exec.
func (*runner) Decode(b []byte) (version.PluginInfo, error) {
	return (&version.PluginDecoder{}).Decode(b)
}

// A PluginError says which plugin did not do its work, in its own words.
type PluginError struct {
	Path, Command string
	Words         string // that it had for it; may be empty
	Err           error  // how it ended
}

func (e *PluginError) Error() string {
	if e.Words == "" {
		return fmt.Sprintf("%s %s: %v", e.Path, e.Command, e.Err)
	}
	return fmt.Sprintf("%s %s: %v: %s", e.Path, e.Command, e.Err, e.Words)
}

func (e *PluginError) Unwrap() error { return e.Err }

// words are what a plugin had to say: the error that it should have printed (spec,
// "Error"), else the end of what it complained, else what it printed instead.
func words(stdout, stderr []byte) string {
	var e types.Error
	if json.Unmarshal(stdout, &e) == nil && e.Msg != "" {
		text := e.Msg
		if e.Details != "" {
			text += "; " + e.Details
		}
		return plain(text)
	}
	if text := plain(string(stderr)); text != "" {
		return text
	}
	return plain(string(stdout))
}

// plain is text as one line of an error, its end if it is long.
func plain(s string) string {
	s = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(s, "?"), func(r rune) bool { return r < ' ' || r == 0x7f }), " ")
	if len(s) > maxWords {
		s = "…" + strings.ToValidUTF8(s[len(s)-maxWords:], "")
	}
	return strings.TrimSpace(s)
}

// Bounds of a result.
const (
	maxAddresses = 64
	maxRoutes    = 1024
	maxLinks     = 64
	maxServers   = 32
)

// checkResult finds in a result what libcni trusts to be there: it follows null pointers.
func checkResult(b []byte) error {
	var r struct {
		IPs        []json.RawMessage `json:"ips"`
		Interfaces []json.RawMessage `json:"interfaces"`
		Routes     []json.RawMessage `json:"routes"`
		IP4        *struct {
			Routes []json.RawMessage `json:"routes"`
		} `json:"ip4"`
		IP6 *struct {
			Routes []json.RawMessage `json:"routes"`
		} `json:"ip6"`
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return fmt.Errorf("its result: %w", err)
	}
	lists := []struct {
		name string
		list []json.RawMessage
		most int
	}{{"ips", r.IPs, maxAddresses}, {"interfaces", r.Interfaces, maxLinks}, {"routes", r.Routes, maxRoutes}}
	if r.IP4 != nil {
		lists = append(lists, lists[2])
		lists[3].list = r.IP4.Routes
	}
	if r.IP6 != nil {
		lists = append(lists, lists[2])
		lists[len(lists)-1].list = r.IP6.Routes
	}
	for _, l := range lists {
		if len(l.list) > l.most {
			return fmt.Errorf("its result: %d %s: more than %d", len(l.list), l.name, l.most)
		}
		for _, v := range l.list {
			if bytes.Equal(bytes.TrimSpace(v), []byte("null")) {
				return errors.New("its result: null in " + l.name)
			}
		}
	}
	return nil
}

// isNetns tells whether a namespace is mounted at path.
func isNetns(path string) bool {
	var st unix.Statfs_t
	return path != "" && unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}
