// Package runtime starts containers: it turns a spec of the OCI runtime
// specification into a plan, and a plan into processes.
//
//	plan, err := runtime.NewPlan(spec, runtime.Options{ID: id})
//	c, err := runtime.Start(ctx, plan, runtime.Files{Rootfs: mnt, Stdout: w})
//	defer c.Close()
//	status, err := c.Init().Wait(ctx)
//
// A Plan is worked out from the spec alone; NewPlan touches nothing. Start then
// goes through three stages:
//
//  1. Here, in Go: the cgroup is made and limited; the root, the sources of
//     mounts and the places for them are opened; /dev, terminals and file
//     systems that belong to no namespace are made as detached mounts.
//  2. The rest is written down as a program, a flat array of system calls
//     (type program). Results of some are arguments of others, and errors may be tolerated.
//  3. clone3 makes a child with its namespaces, in its cgroup, on this
//     process's memory as vfork does, and a few lines of assembler (vm_*.s)
//     execute the program in it. Its last call is execve.
//
// So no code of ours is executed as a program inside of a container, where it
// could be seen or written to, with one exception that is sealed (init.go);
// there is no second start of a Go runtime; and a start costs the same however
// much memory this process has. If a call fails, its number and errno are left
// in shared memory, and the error names the step: "mount proc on /proc: operation not permitted".
//
// Invariants:
//   - Nothing in a container's file system is opened by a path that the image
//     or another container could redirect: places are found by walking
//     descriptors (type tree), mounts are moved onto descriptors, and all of it
//     is done before anything of the container runs.
//   - /proc, /sys and /dev are made by us, and what is written to /proc goes
//     through a procfs of our own.
//   - Every descriptor is close-on-exec, and the program closes what it does not pass on.
//   - The child shares our memory only in a pid namespace of its own, where
//     nobody is yet. Exec, which joins others, forks without, and this process is not dumpable.
//   - No process is ever moved between cgroups; see package cgroups.
//
// A child that has to wait, for hooks, for the IDs of a user namespace, or for
// the start of a container that was created, is forked instead, and reads from a
// line to its parent (sync.go). One that was created is parked on a FIFO (park.go): it is the
// process that will execute the program, holds nothing of ours but two FIFOs, and
// needs none of ours alive.
//
// It needs Linux 5.12, for mount_setattr, and 6.1 for time namespaces; what
// newer kernels do better is tried first. What a spec asks for and the package does not do, NewPlan refuses by name.
package runtime
