package containers

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// dockerConfig is what Docker adds to an image's config (moby/docker-image-spec
// v1.3, specs-go/v1).
type dockerConfig struct {
	Config struct {
		Healthcheck control.Healthcheck
		Shell       []string // runs CMD-SHELL
	} `json:"config"`
}

// healthcheck is the check of a container, nil for none: the user's settings,
// and the image's where the user has made none. An image's that cannot be
// understood is a warning, as with Docker, and not the end of the container.
func healthcheck(a *control.CreateArgs, config []byte) (h *control.Healthcheck, warnings []string, err error) {
	own := a.Health
	given := own.Interval != 0 || own.Timeout != 0 || own.StartPeriod != 0 || own.StartInterval != 0 || own.Retries != 0
	if a.NoHealthcheck {
		if given || len(own.Test) > 0 {
			return nil, nil, invalid("--no-healthcheck: the other options ask for a health check")
		}
		return nil, nil, nil
	}
	if err := monitor.CheckHealth(own); err != nil {
		return nil, nil, invalid("--%v", err)
	}
	var image dockerConfig
	if err := json.Unmarshal(config, &image); err != nil {
		warnings = append(warnings, fmt.Sprintf("the image's health check is not understood: %v", err))
		image = dockerConfig{}
	}
	its := image.Config.Healthcheck
	if err := monitor.CheckHealth(control.Healthcheck{Test: its.Test}); err != nil && len(own.Test) == 0 {
		warnings = append(warnings, "the image's "+err.Error())
		its.Test = nil
	}
	h = &control.Healthcheck{
		Test:     slices.Clone(own.Test),
		Interval: cmp.Or(own.Interval, its.Interval), Timeout: cmp.Or(own.Timeout, its.Timeout),
		StartPeriod: cmp.Or(own.StartPeriod, its.StartPeriod), StartInterval: cmp.Or(own.StartInterval, its.StartInterval),
		Retries: cmp.Or(own.Retries, its.Retries),
	}
	if len(h.Test) == 0 {
		h.Test = its.Test
	}
	if len(h.Test) == 0 || h.Test[0] == "NONE" {
		if given {
			return nil, nil, invalid("--health-cmd is missing: the image has no health check of its own")
		}
		return nil, warnings, nil
	}
	if h.Test[0] == "CMD-SHELL" && len(image.Config.Shell) > 0 && image.Config.Shell[0] != "" {
		h.Test = slices.Concat([]string{"CMD"}, image.Config.Shell, h.Test[1:])
	}
	return h, warnings, nil
}
