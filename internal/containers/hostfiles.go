package containers

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
)

// writeHostFiles makes the hosts, hostname and resolv.conf of a container in
// dir. A container on the host's network gets the host's, one without a network
// only itself.
func writeHostFiles(dir, hostname, network string) error {
	hosts := []byte("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	var resolv []byte
	if network == "host" {
		if b := readSmall("/etc/hosts"); b != nil {
			hosts = b
		}
		resolv = hostResolv()
	}
	for name, text := range map[string][]byte{hostsFile: hosts, hostnameFile: []byte(hostname + "\n"), resolvFile: resolv} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// hostResolv is the host's resolver configuration. Where that only points at
// systemd-resolved's stub, the servers behind the stub are what a container
// wants when it leaves the host's network later (resolved.conf(5), /run/systemd/resolve/resolv.conf).
func hostResolv() []byte {
	b := readSmall("/etc/resolv.conf")
	if bytes.Contains(b, []byte("nameserver 127.0.0.53")) {
		if real := readSmall("/run/systemd/resolve/resolv.conf"); real != nil {
			return real
		}
	}
	return b
}

// readSmall returns the first 64 KiB of a file, nil if it cannot be read.
func readSmall(name string) []byte {
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return nil
	}
	return b
}
