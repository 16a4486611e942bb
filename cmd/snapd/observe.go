package main

import (
	"errors"
	"fmt"

	"github.com/snapfs/snapfs/internal/telemetry"
)

// MetricsConfig says where metrics are served in Prometheus' text format.
// snapctl stat --prometheus has them without it.
type MetricsConfig struct {
	// Address is HOST:PORT, or unix: and the absolute path of a socket (mode
	// 0600), where GET /metrics is answered. Default none.
	Address string `toml:"address"`
	// Remote lets Address be one that other machines reach. Default false:
	// there is no password.
	Remote bool `toml:"remote"`
}

func (m MetricsConfig) validate() error {
	if m.Address == "" {
		if m.Remote {
			return errors.New("metrics.remote is set, but metrics.address is not")
		}
		return nil
	}
	if err := telemetry.CheckAddress(m.Address, m.Remote); err != nil {
		return fmt.Errorf("metrics.address = %q: %w", m.Address, err)
	}
	return nil
}
