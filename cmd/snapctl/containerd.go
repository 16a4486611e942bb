package main

import (
	"context"
	"fmt"
	"os"
	"syscall"
)

// containerd becomes snapd, which links what it takes to speak to containerd.
func containerd(_ context.Context, env *Env, args []string) error {
	var write, cri, content bool
	var config, program, version, address, name, entry, snapdConfig string
	f := &flagSet{
		usage: "containerd config|check [OPTIONS]",
		about: "Let containerd use snapd. config prints what containerd needs in its configuration, for the\n" +
			"version found; with --write it merges that into the file, which is kept beside it as it was.\n" +
			"check finds out what is wrong on this node, and exits with 1 if images cannot start lazily.",
		example: "snapctl containerd config --write && systemctl restart containerd\nsnapctl containerd check",
	}
	f.flag(&write, "write", "config: merge it into the file")
	f.text(&config, "config", "FILE", "containerd's configuration file (default /etc/containerd/config.toml)")
	f.flag(&cri, "cri", "make it CRI's snapshotter, for Kubernetes; check: expect that")
	f.flag(&content, "content", "have snapd as the content store, so that lazily pulled images can be pushed; check: expect that")
	f.text(&name, "name", "NAME", "name of the snapshotter in containerd (default snapfs)")
	f.text(&program, "containerd", "PROGRAM", "containerd's program (default the one in PATH)")
	f.text(&version, "containerd-version", "VERSION", "config: for this version, without asking the program")
	f.text(&address, "address", "SOCKET", "check: containerd's socket (default as configured)")
	f.text(&entry, "entry", "NAME", "name of the [[containerd]] table in snapd's configuration")
	f.text(&snapdConfig, "snapd-config", "FILE", "snapd's configuration file (default /etc/snapfs/snapd.toml, if it exists)")
	rest, err := f.parse(env, args, 1, 1)
	if err != nil {
		return err
	}
	if rest[0] != "config" && rest[0] != "check" {
		return usageErrorf("containerd: %q: want config or check", rest[0])
	}
	snapd, err := findDaemon()
	if err != nil {
		return err
	}
	argv := []string{snapd, "containerd", rest[0]}
	for _, o := range []struct{ name, value string }{
		{"config", config}, {"name", name}, {"containerd", program}, {"containerd-version", version}, {"address", address},
		{"entry", entry}, {"snapd-config", snapdConfig}, {"root", env.Root}, {"run", env.Run},
	} {
		if o.value != "" {
			argv = append(argv, "--"+o.name+"="+o.value)
		}
	}
	for _, o := range []struct {
		name string
		set  bool
	}{{"write", write}, {"cri", cri}, {"content", content}, {"json", env.JSON}} {
		if o.set {
			argv = append(argv, "--"+o.name)
		}
	}
	return fmt.Errorf("%s: %w", snapd, syscall.Exec(snapd, argv, os.Environ()))
}
