package network

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
)

// sysctl reads a file below /proc/sys/net, which is that of this thread's network namespace.
func sysctl(name string) (string, error) {
	b, err := os.ReadFile("/proc/sys/net/" + name)
	return string(bytes.TrimSpace(b)), err
}

func setSysctl(name, value string) error {
	f, err := os.OpenFile("/proc/sys/net/"+name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// haveIPv6 says whether links can have IPv6 addresses.
func haveIPv6() bool {
	v, err := sysctl("ipv6/conf/all/disable_ipv6")
	return err == nil && v == "0"
}

// trySysctl is setSysctl for what some kernels do not have.
func trySysctl(name, value string) error {
	if err := setSysctl(name, value); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
