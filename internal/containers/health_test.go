package containers

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime/monitor"
)

func TestHealthcheck(t *testing.T) {
	const its = `{"config":{"Healthcheck":{"Test":["CMD-SHELL","curl x"],"Interval":5000000000,"Retries":7}}}`
	shell := func(s string) []string { return []string{"CMD-SHELL", s} }
	for name, test := range map[string]struct {
		image   string
		args    control.CreateArgs
		want    *control.Healthcheck
		warning string
		err     string
	}{
		"none":           {`{}`, control.CreateArgs{}, nil, "", ""},
		"the image's":    {its, control.CreateArgs{}, &control.Healthcheck{Test: shell("curl x"), Interval: 5 * time.Second, Retries: 7}, "", ""},
		"turned off":     {its, control.CreateArgs{NoHealthcheck: true}, nil, "", ""},
		"its NONE":       {`{"config":{"Healthcheck":{"Test":["NONE"]}}}`, control.CreateArgs{}, nil, "", ""},
		"no test":        {`{"config":{"Healthcheck":{"Interval":5}}}`, control.CreateArgs{}, nil, "", ""},
		"the user's":     {`{}`, control.CreateArgs{Health: control.Healthcheck{Test: shell("true"), Retries: 1}}, &control.Healthcheck{Test: shell("true"), Retries: 1}, "", ""},
		"both":           {its, control.CreateArgs{Health: control.Healthcheck{Test: shell("true"), Retries: 1}}, &control.Healthcheck{Test: shell("true"), Interval: 5 * time.Second, Retries: 1}, "", ""},
		"its shell":      {`{"config":{"Shell":["/bin/bash","-ec"],"Healthcheck":{"Test":["CMD-SHELL","a"]}}}`, control.CreateArgs{}, &control.Healthcheck{Test: []string{"CMD", "/bin/bash", "-ec", "a"}}, "", ""},
		"malformed test": {`{"config":{"Healthcheck":{"Test":["curl"]}}}`, control.CreateArgs{}, nil, `health check ["curl"]`, ""},
		"not JSON":       {`{"config":{"Healthcheck":3}}`, control.CreateArgs{}, nil, "not understood", ""},
		"overflow":       {`{"config":{"Healthcheck":{"Test":["CMD","x"],"Interval":1e30}}}`, control.CreateArgs{}, nil, "not understood", ""},
		"contradiction":  {its, control.CreateArgs{NoHealthcheck: true, Health: control.Healthcheck{Retries: 1}}, nil, "", "--no-healthcheck"},
		"nothing to run": {`{}`, control.CreateArgs{Health: control.Healthcheck{Retries: 1}}, nil, "", "--health-cmd is missing"},
		"too often":      {its, control.CreateArgs{Health: control.Healthcheck{Interval: 1}}, nil, "", "--health-interval 1ns"},
		"user's test":    {its, control.CreateArgs{Health: control.Healthcheck{Test: []string{"x"}}}, nil, "", `--health check ["x"]`},
	} {
		t.Run(name, func(t *testing.T) {
			got, warnings, err := healthcheck(&test.args, []byte(test.image))
			if !reflect.DeepEqual(got, test.want) || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("healthcheck = %+v, %v; want %+v, %q", got, err, test.want, test.err)
			}
			if w := strings.Join(warnings, "\n"); (w == "") != (test.warning == "") || !strings.Contains(w, test.warning) {
				t.Errorf("warnings %q, want %q", w, test.warning)
			}
		})
	}
}

// Whatever an image says, what comes of it is a configuration that a monitor takes.
func FuzzHealthcheck(f *testing.F) {
	f.Add([]byte(`{"config":{"Healthcheck":{"Test":["CMD-SHELL","curl x"],"Interval":5000000000,"Retries":7},"Shell":["sh"]}}`))
	f.Add([]byte(`{"config":{"Healthcheck":{"Test":["NONE"],"StartPeriod":-1}}}`))
	f.Fuzz(func(t *testing.T, config []byte) {
		h, _, err := healthcheck(&control.CreateArgs{}, config)
		if err != nil {
			t.Fatalf("an image's config is an error: %v", err)
		}
		if h == nil {
			return
		}
		if err := monitor.CheckHealth(control.Healthcheck{Test: h.Test}); err != nil {
			b, _ := json.Marshal(h)
			t.Errorf("healthcheck = %s: %v", b, err)
		}
	})
}
