package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// Bounds of configurations, and of what is said about them.
const (
	maxConfig  = 1 << 20 // bytes of a file
	maxConfigs = 256     // files
	maxPlugins = 32      // of a network
	maxNames   = 16      // that an error lists
)

// CheckName says whether name can be that of a network.
func CheckName(name string) error {
	if len(name) > 200 {
		return fmt.Errorf("%.40q…: longer than 200 bytes", name)
	}
	if err := utils.ValidateNetworkName(name); err != nil {
		return fmt.Errorf("%q: want letters, digits, _ . and -, and a letter or digit first", name)
	}
	return nil
}

// load finds the configuration of a network among those that there are. Its Bytes are all of it.
func (s *Service) load(name string) (*libcni.NetworkConfigList, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	files, err := configFiles(s.Configs, ".conflist", ".conf", ".json")
	if err != nil {
		return nil, err
	}
	var others, bad []string
	for _, f := range files {
		raw, err := readConfig(f)
		if err == nil {
			raw, err = wholeList(f, raw)
		}
		var list *libcni.NetworkConfigList
		if err == nil {
			list, err = parseList(raw)
		}
		switch {
		case err != nil:
			bad = append(bad, fmt.Sprintf("%s: %v", f, err))
		case list.Name == name:
			return list, nil
		case !slices.Contains(others, list.Name):
			others = append(others, list.Name)
		}
	}
	text := fmt.Sprintf("there is no configuration of that name in %s (network.cni_config of the daemon's configuration)", s.Configs)
	if len(others) > 0 {
		text += "; those that are there: " + strings.Join(others[:min(len(others), maxNames)], ", ")
	}
	if len(bad) > 0 {
		text += "; not used: " + strings.Join(bad[:min(len(bad), maxNames)], "; ")
	}
	return nil, &control.Error{Code: control.CodeNotFound, Message: text}
}

// configFiles lists files of a directory, in the order of extensions and then of names.
func configFiles(dir string, extensions ...string) (files []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, ext := range extensions {
		for _, e := range entries {
			if filepath.Ext(e.Name()) == ext && !e.IsDir() {
				files = append(files, filepath.Join(dir, e.Name()))
			}
		}
	}
	if len(files) > maxConfigs {
		return nil, fmt.Errorf("%s: more than %d files", dir, maxConfigs)
	}
	return files, nil
}

func readConfig(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO would wait for its writer
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, errors.Join(err, errors.New("it is no regular file"))
	}
	b, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if len(b) > maxConfig {
		return nil, fmt.Errorf("larger than %d bytes", maxConfig)
	}
	return b, err
}

// listConfig is the form in which a list is kept, and read again: with all its plugins in it.
type listConfig struct {
	CNIVersion   string            `json:"cniVersion,omitempty"`
	Name         string            `json:"name"`
	DisableCheck bool              `json:"disableCheck,omitempty"`
	DisableGC    bool              `json:"disableGC,omitempty"`
	Inlined      bool              `json:"loadOnlyInlinedPlugins"`
	Plugins      []json.RawMessage `json:"plugins"`
}

// wholeList makes a list of what a file has: a list, with plugins in files of
// their own perhaps (DIR/NAME/*.conf, CNI 1.1), or a single plugin of before there were lists.
func wholeList(path string, raw []byte) ([]byte, error) {
	if filepath.Ext(path) != ".conflist" {
		var head listConfig
		if err := json.Unmarshal(raw, &head); err != nil {
			return nil, err
		}
		return json.Marshal(listConfig{CNIVersion: head.CNIVersion, Name: head.Name, Inlined: true, Plugins: []json.RawMessage{raw}})
	}
	list, err := libcni.NetworkConfFromBytes(raw)
	if err != nil {
		return nil, err
	}
	out := listConfig{CNIVersion: list.CNIVersion, Name: list.Name, DisableCheck: list.DisableCheck, DisableGC: list.DisableGC, Inlined: true}
	for _, p := range list.Plugins {
		out.Plugins = append(out.Plugins, p.Bytes)
	}
	if !list.LoadOnlyInlinedPlugins && CheckName(list.Name) == nil {
		files, err := configFiles(filepath.Join(filepath.Dir(path), list.Name), ".conf")
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			b, err := readConfig(f)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", f, err)
			}
			if !json.Valid(b) {
				return nil, fmt.Errorf("%s: it is no JSON", f)
			}
			out.Plugins = append(out.Plugins, b)
		}
	}
	return json.Marshal(out)
}

// parseList reads a list that has all of its plugins in it.
func parseList(raw []byte) (*libcni.NetworkConfigList, error) {
	list, err := libcni.NetworkConfFromBytes(raw)
	if err != nil {
		return nil, err
	}
	if err := CheckName(list.Name); err != nil {
		return nil, fmt.Errorf("name: %w", err)
	}
	if n := len(list.Plugins); n == 0 || n > maxPlugins {
		return nil, fmt.Errorf("%d plugins: want 1 to %d", n, maxPlugins)
	}
	for _, p := range list.Plugins {
		if strings.ContainsRune(p.Network.Type, '/') {
			return nil, fmt.Errorf("plugin %q: want a program's name", p.Network.Type)
		}
	}
	return list, nil
}

// Capabilities, by their names in the conventions (CONVENTIONS.md of
// containernetworking/cni): what a plugin that declares one is told.
const (
	capPorts = "portMappings"
	capIPs   = "ips"
	capMAC   = "mac"
)

type portMapping struct {
	HostPort      uint16 `json:"hostPort"`
	ContainerPort uint16 `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

// Plugins that know an argument (CNI_ARGS) without declaring a capability.
var (
	takesIP  = []string{"host-local", "static"}               // of IPAM: IP
	takesMAC = []string{"bridge", "macvlan", "tap", "tuning"} // MAC
)

// arguments are what the plugins are told beside their configuration. What none
// of them understands is refused by name.
func arguments(list *libcni.NetworkConfigList, q Request, ports []control.Binding) (args [][2]string, caps map[string]any, err error) {
	caps = map[string]any{}
	has := func(name string) bool {
		return slices.ContainsFunc(list.Plugins, func(p *libcni.PluginConfig) bool { return p.Network.Capabilities[name] })
	}
	if len(ports) > 0 {
		if !has(capPorts) {
			return nil, nil, refused("--publish", list, capPorts, "the plugin portmap has it")
		}
		var m []portMapping
		for _, b := range ports {
			m = append(m, portMapping{b.Host, b.Container, b.Proto, b.HostIP.String()})
		}
		caps[capPorts] = m
	}
	var ips []string
	for _, a := range []netip.Addr{q.IPv4, q.IPv6} {
		if a.IsValid() {
			ips = append(ips, a.String())
		}
	}
	ipam := func(p *libcni.PluginConfig) bool { return slices.Contains(takesIP, p.Network.IPAM.Type) }
	switch {
	case len(ips) == 0:
	case has(capIPs):
		caps[capIPs] = ips
	case len(ips) == 1 && slices.ContainsFunc(list.Plugins, ipam):
		args = append(args, [2]string{"IP", ips[0]})
	default:
		return nil, nil, refused("--ip, --ip6", list, capIPs, "the plugins host-local and static understand it")
	}
	byArg := func(p *libcni.PluginConfig) bool { return slices.Contains(takesMAC, p.Network.Type) }
	switch {
	case q.MAC == "":
	case has(capMAC):
		caps[capMAC] = q.MAC
	case slices.ContainsFunc(list.Plugins, byArg):
		args = append(args, [2]string{"MAC", q.MAC})
	default:
		return nil, nil, refused("--mac-address", list, capMAC, "the plugin tuning has it")
	}
	if len(args) > 0 {
		args = append([][2]string{{"IgnoreUnknown", "1"}}, args...) // the others need not know it
	}
	return args, caps, nil
}

func refused(flag string, list *libcni.NetworkConfigList, capability, hint string) error {
	return &control.Error{Code: control.CodeUnsupported, Message: fmt.Sprintf("%s: no plugin of the network %s declares the capability %s; %s", flag, list.Name, capability, hint)}
}
