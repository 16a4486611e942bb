package main

import (
	"fmt"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/ports"
)

// networkFlags registers what connects a container.
func networkFlags(f *flagSet, a *control.CreateArgs) {
	f.add("expose", "PORT[/PROTOCOL]", "say that the container listens at a port; see --publish-all", func(s string) error {
		p, err := ports.Expose(s)
		a.Expose = append(a.Expose, p...)
		return err
	})
	f.add("network,net", "NETWORK", "network: bridge (default), host, none, or container:NAME for that of another container", func(s string) error { a.Network = s; return network(s) })
	f.add("p,publish", "PORT", "publish a port: [[ADDRESS:][HOST-PORT]:]PORT[/udp], or ranges of ports", func(s string) error {
		p, err := ports.Parse(s)
		a.Publish = append(a.Publish, p...)
		return err
	})
	f.flag(&a.PublishAll, "P,publish-all", "publish all exposed ports at free ones of this machine")
}

func network(s string) error {
	switch s {
	case control.NetworkBridge, control.NetworkDefault, control.NetworkHost, control.NetworkNone:
		return nil
	}
	if _, ok := control.OtherContainer(s); ok {
		return nil
	}
	return fmt.Errorf("%q: unknown network; use bridge, host, none or container:NAME", s)
}
