package network

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
)

// forwarding makes the host pass on the packets of containers, which takes a
// switch that is the whole machine's (net.ipv4.ip_forward). A machine that was
// no router must not become one by that: the links that did not forward before
// are remembered in a file of RUN, which dies with the machine as the switch
// does, and what comes in by one of them and would go out by another is dropped
// by our table. Links that come later are their makers' business.
type forwarding struct {
	file string
	// Quiet4 and Quiet6 are the names of links that did not forward.
	Quiet4, Quiet6 []string
}

func openForwarding(run string) (*forwarding, error) {
	f := &forwarding{file: filepath.Join(run, "forwarding.json")}
	b, err := os.ReadFile(f.file)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err == nil {
		err = json.Unmarshal(b, f)
	}
	return f, err
}

// enable switches forwarding on, where it is off. It is never switched off:
// others may have come to rely on it.
func (f *forwarding) enable(v6 bool, own string) (changed bool, err error) {
	on4, err := sysctl("ipv4/ip_forward")
	if err != nil {
		return false, err
	}
	on6 := "1"
	if v6 {
		if on6, err = sysctl("ipv6/conf/all/forwarding"); err != nil {
			return false, err
		}
	}
	if on4 != "0" && on6 != "0" {
		return false, nil
	}
	links, err := net.Interfaces()
	if err != nil {
		return false, err
	}
	for _, l := range links {
		if l.Name == own || l.Flags&net.FlagLoopback != 0 {
			continue
		}
		if v, err := sysctl("ipv4/conf/" + l.Name + "/forwarding"); on4 == "0" && err == nil && v == "0" {
			f.Quiet4 = appendNew(f.Quiet4, l.Name)
		}
		if v, err := sysctl("ipv6/conf/" + l.Name + "/forwarding"); on6 == "0" && err == nil && v == "0" {
			f.Quiet6 = appendNew(f.Quiet6, l.Name)
		}
	}
	b, err := json.Marshal(f)
	if err != nil {
		return false, err
	}
	if err := writeFile(f.file, b); err != nil { // first: after a crash in between, nothing is open that should not be
		return false, err
	}
	return true, nil
}

// apply flips the switches; after the table that guards them is there.
func (f *forwarding) apply(v6 bool) error {
	if on, err := sysctl("ipv4/ip_forward"); err != nil || on == "0" {
		if err := errors.Join(err, setSysctl("ipv4/ip_forward", "1")); err != nil {
			return err
		}
	}
	if !v6 {
		return nil
	}
	if on, err := sysctl("ipv6/conf/all/forwarding"); err != nil || on != "0" {
		return err
	}
	// A router ignores the routes that other routers advertise, and forgets those
	// that it has, unless accept_ra is 2 (Documentation/networking/ip-sysctl.rst).
	for _, l := range append(slices.Clone(f.Quiet6), "default", "all") {
		if v, err := sysctl("ipv6/conf/" + l + "/accept_ra"); err == nil && v == "1" {
			if err := setSysctl("ipv6/conf/"+l+"/accept_ra", "2"); err != nil {
				return err
			}
		}
	}
	return setSysctl("ipv6/conf/all/forwarding", "1")
}

func appendNew(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

// writeFile replaces a file atomically. It need not survive the machine.
func writeFile(name string, b []byte) error {
	tmp := name + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}
