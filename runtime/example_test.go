package runtime_test

import (
	"context"
	"fmt"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/runtime"
)

// A container is planned, by anybody, and run, by root.
func Example() {
	spec := &specs.Spec{
		Version:  specs.Version,
		Root:     &specs.Root{Path: "rootfs", Readonly: true},
		Hostname: "box",
		Process:  &specs.Process{Args: []string{"/bin/true"}, Cwd: "/", NoNewPrivileges: true},
		Mounts:   []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Linux:    &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.UTSNamespace}}},
	}
	plan, err := runtime.NewPlan(spec, runtime.Options{ID: "example"})
	if err != nil {
		fmt.Println(err)
		return
	}
	run := func(ctx context.Context, rootfs *os.File) (runtime.Status, error) {
		c, err := runtime.Start(ctx, plan, runtime.Files{Rootfs: rootfs, Stdout: os.Stdout})
		if err != nil {
			return runtime.Status{}, err
		}
		defer c.Close()
		context.AfterFunc(ctx, func() { c.Init().Signal(unix.SIGTERM) })
		return c.Init().Wait(context.Background())
	}
	_ = run // needs root

	spec.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: "a"}
	_, err = runtime.NewPlan(spec, runtime.Options{ID: "example"})
	fmt.Println(err)
	// Output: spec: linux.intelRdt: not supported
}
