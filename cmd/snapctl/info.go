package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/snapfs/snapfs/internal/control"
)

func info(ctx context.Context, env *Env, args []string) error {
	f := &flagSet{usage: "info", about: "Show how this machine mounts images, what its kernel can do, and what there is.", example: "snapctl info --json"}
	if _, err := f.parse(env, args, 0, 0); err != nil {
		return err
	}
	var i control.Info
	if err := env.call(ctx, control.OpInfo, nil, &i); err != nil {
		return err
	}
	if env.JSON {
		return env.printJSON(i)
	}
	var b strings.Builder
	for _, line := range [][2]string{
		{"Version", i.Version.Version},
		{"Root", i.Root}, {"Run", i.Run},
		{"Backend", i.Backend}, {"Kernel", i.Kernel}, {"Cgroup", i.Cgroup},
		{"Images", fmt.Sprint(i.Images)},
		{"Containers", fmt.Sprintf("%d (%d running)", i.Containers, i.Running)},
		{"Mounts", fmt.Sprint(i.Mounts)},
		{"Processes", fmt.Sprintf("supervisor %d, worker %d (replaced %d times)", i.Supervisor, i.Worker, i.Restarts)},
	} {
		fmt.Fprintf(&b, "%-12s%s\n", line[0]+":", printable(line[1]))
	}
	for _, c := range i.Containerd {
		fmt.Fprintf(&b, "%-12s%s\n", "Containerd:", printable(containerdLine(c)))
	}
	b.WriteString("Features:\n")
	width := 0
	for name := range i.Features {
		width = max(width, len(name))
	}
	for _, name := range slices.Sorted(maps.Keys(i.Features)) {
		fmt.Fprintf(&b, "  %-*s  %s\n", width, name, printable(i.Features[name]))
	}
	_, err := env.Stdout.WriteString(b.String())
	return err
}

func containerdLine(c control.ContainerdInfo) string {
	line := c.Name + " at " + c.Socket
	if c.CRI {
		line += ", with the image service of " + c.Address
	}
	if c.Error != "" {
		return line + ": NOT SERVED: " + c.Error
	}
	return fmt.Sprintf("%s (%d calls)", line, c.Calls)
}

func stat(ctx context.Context, env *Env, args []string) error {
	var prometheus bool
	f := &flagSet{usage: "stat [OPTIONS]", about: "Show the daemon's counters.", example: "snapctl stat --json"}
	f.flag(&prometheus, "prometheus", "print all metrics in Prometheus' text format")
	if _, err := f.parse(env, args, 0, 0); err != nil {
		return err
	}
	if prometheus {
		var text string
		if err := env.call(ctx, control.OpMetrics, nil, &text); err != nil {
			return err
		}
		_, err := env.Stdout.WriteString(text)
		return err
	}
	var counters map[string]int64
	if err := env.call(ctx, control.OpStat, nil, &counters); err != nil {
		return err
	}
	if env.JSON {
		return env.printJSON(counters)
	}
	t := newTable("COUNTER", "VALUE")
	for _, name := range slices.Sorted(maps.Keys(counters)) {
		t.row(name, fmt.Sprint(counters[name]))
	}
	_, err := env.Stdout.WriteString(t.String())
	return err
}

func showVersion(ctx context.Context, env *Env, args []string) error {
	var client bool
	f := &flagSet{usage: "version [OPTIONS]", about: "Show the versions of snapctl and of the daemon.", example: "snapctl version --client"}
	f.flag(&client, "client", "do not ask the daemon")
	if _, err := f.parse(env, args, 0, 0); err != nil {
		return err
	}
	own := control.Version{Version: version, Go: runtime.Version(), Protocol: control.Protocol}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				own.Commit = s.Value
			}
		}
	}
	both := struct {
		Client control.Version
		Daemon *control.Version `json:",omitempty"`
	}{Client: own}
	if !client {
		both.Daemon = new(control.Version)
		quiet := *env
		quiet.NoAutostart = true // to be asked for its version, no daemon need be started
		if err := quiet.call(ctx, control.OpVersion, nil, both.Daemon); err != nil {
			if !env.JSON {
				fmt.Fprintf(env.Stdout, "snapctl  %s\n", describe(own))
			}
			return err
		}
	}
	if env.JSON {
		return env.printJSON(both)
	}
	fmt.Fprintf(env.Stdout, "snapctl  %s\n", describe(own))
	if both.Daemon != nil {
		fmt.Fprintf(env.Stdout, "snapd    %s\n", describe(*both.Daemon))
	}
	return nil
}

func describe(v control.Version) string {
	text := fmt.Sprintf("%s (protocol %d, %s", v.Version, v.Protocol, v.Go)
	if v.Commit != "" {
		text += ", " + v.Commit[:min(12, len(v.Commit))]
	}
	return text + ")"
}

func (env *Env) printIndented(v any) error {
	b, err := json.MarshalIndent(v, "", "    ")
	if err != nil {
		return err
	}
	_, err = env.Stdout.Write(append(plainJSON(b), '\n'))
	return err
}
