package integration

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/snapfs/snapfs/internal/control"
)

// TestReady waits for containers to be ready, each for another reason, by the
// command line; one of them across the death of the daemon.
func TestReady(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m := startMachine(t, "")
	im := newImage(t, eStargz, []file{dir("proc"), dir("sys"), dir("dev"), dir("tmp"), inside(t)})
	ref := hub.put(t, "ready", im)
	config := map[string]any{}
	if err := json.Unmarshal(im.config, &config); err != nil {
		t.Fatal(err)
	}
	config["config"] = map[string]any{"Healthcheck": map[string]any{"Test": []string{"CMD", "/inside", "exit", "0"}}}
	im.setConfig(t, config)
	checked := hub.put(t, "checked", im)

	m.ok("run", "-d", "--name", "quiet", ref, "/inside", "wait")
	m.ok("run", "-d", "--name", "line", "--ready", "line=^waiting$", ref, "/inside", "wait")
	m.ok("run", "-d", "--name", "file", "--ready", "file=/tmp/there", ref, "/inside", "wait")
	m.ok("run", "-d", "--name", "healthy", checked, "/inside", "wait")
	m.ok("run", "-d", "--name", "unchecked", "--no-healthcheck", checked, "/inside", "exit", "0")
	m.ok("run", "-d", "--name", "dies", "--ready", "port=80", ref, "/inside", "exit", "5")
	for name, by := range map[string]string{"quiet": "quiet", "line": "line", "healthy": "health", "unchecked": "exit"} {
		if out := m.ok("wait", "--ready", name); !strings.HasPrefix(out, by+" ") {
			t.Errorf("wait --ready %s: %q", name, out)
		}
	}
	if out, code := m.snapctl("wait", "--ready", "dies"); code != 1 || out != "" {
		t.Errorf("wait --ready of one that died: exit status %d, %q", code, out)
	}
	if out := m.ok("ps"); !strings.Contains(out, "(healthy)") || strings.Contains(out, "starting") {
		t.Errorf("ps:\n%s", out)
	}
	var found []struct {
		control.Container
	}
	if err := json.Unmarshal([]byte(m.ok("inspect", "healthy")), &found); err != nil || len(found) != 1 || found[0].Health == nil || len(found[0].Health.Log) == 0 {
		t.Errorf("inspect: %v, %+v", err, found)
	}
	m.kill()
	m.start()
	m.ok("exec", "file", "/inside", "make", "/tmp/there")
	if out := m.ok("wait", "--ready", "file"); !strings.HasPrefix(out, "file ") {
		t.Errorf("wait --ready file: %q", out)
	}
	m.ok("rm", "-f", "quiet", "line", "file", "healthy", "unchecked", "dies")
	m.ok("rmi", ref, checked)
	m.nothingLeft()
}
