// Package systemd asks a machine's service manager for the cgroup of a
// container: a transient scope, which is a unit that holds processes it has not
// started itself. It says a few messages of D-Bus to systemd's private socket,
// where root needs no message bus in between.
//
// A slice is a unit that holds others; its name tells those it is in:
// "a-b.slice" is below "a.slice". The group of a unit lies where its slice has it (Path).
//
// It is our own code because its users start in two milliseconds and stay small:
// github.com/coreos/go-systemd's dbus and godbus below it bring reflection over
// all of D-Bus, and their init functions, into every start and every monitor.
//
//	c, err := systemd.Dial(ctx, systemd.Socket)
//	err = c.Start(ctx, "app-1.scope", []systemd.Property{{"Slice", "app.slice"}, {"PIDs", []uint32{pid}}})
//	...
//	err = c.Stop(ctx, "app-1.scope")
package systemd
