package control

import (
	"net/netip"
	"strconv"
)

// The networks that a container can be on, beside "container:NAME".
const (
	NetworkBridge  = "bridge"  // its own namespace, with a link to the daemon's bridge
	NetworkHost    = "host"    // the host's
	NetworkNone    = "none"    // its own namespace, with nothing but lo
	NetworkDefault = "default" // as the daemon is configured, bridge where nothing else is said
	networkOther   = "container:"
	networkCNI     = "cni:"
)

// Port asks for a port of a container to be published (see internal/ports for how it is written).
type Port struct {
	HostIP    string `json:",omitempty"` // "": every address of this machine
	Host      uint16 `json:",omitempty"` // first of the ports to choose from; 0: any free one
	HostEnd   uint16 `json:",omitempty"` // the last of them
	Container uint16
	Proto     string // "tcp" or "udp"
}

// Binding is a port of a container that is published.
type Binding struct {
	HostIP    netip.Addr
	Host      uint16
	Container uint16
	Proto     string
}

// String is how docker writes a binding: 0.0.0.0:8080->80/tcp.
func (b Binding) String() string {
	return netip.AddrPortFrom(b.HostIP, b.Host).String() + "->" + strconv.Itoa(int(b.Container)) + "/" + b.Proto
}

// NetworkConfig is how a container wants to be connected.
type NetworkConfig struct {
	Mode       string     // one of the networks above
	Container  string     `json:",omitempty"` // ID of the one whose namespace it shares; Mode is then "container"
	CNI        string     `json:",omitempty"` // name of a network's configuration; Mode is then "cni"
	Hostname   string     `json:",omitempty"`
	Ports      []Port     `json:",omitempty"` // to be published
	Exposed    []Port     `json:",omitempty"` // that the image or the user says it listens at
	IPv4       netip.Addr `json:",omitzero"`  // asked for; else any
	IPv6       netip.Addr `json:",omitzero"`
	MAC        string     `json:",omitempty"`
	DNS        []string   `json:",omitempty"` // servers; none: the host's
	DNSSearch  []string   `json:",omitempty"`
	DNSOptions []string   `json:",omitempty"`
	Hosts      []string   `json:",omitempty"` // NAME:ADDRESS, or NAME:host-gateway
}

// Shared is the name of the mode in which a container is in the namespace of another one.
const NetworkShared = "container"

// NetworkPlugins is the name of the mode in which CNI's plugins connect a container.
const NetworkPlugins = "cni"

// OfPlugins returns the network's name in "cni:NAME".
func OfPlugins(mode string) (name string, ok bool) {
	if len(mode) <= len(networkCNI) || mode[:len(networkCNI)] != networkCNI {
		return "", false
	}
	return mode[len(networkCNI):], true
}

// OtherContainer returns the container's name in "container:NAME".
func OtherContainer(mode string) (name string, ok bool) {
	if len(mode) <= len(networkOther) || mode[:len(networkOther)] != networkOther {
		return "", false
	}
	return mode[len(networkOther):], true
}

// Endpoint is a container's connection to the bridge, or what CNI's plugins say that they have made.
type Endpoint struct {
	ID       string       // of the container
	Serial   uint64       // tells it from others that the container had
	Bridge   string       `json:",omitempty"`
	Network  string       `json:",omitempty"` // of CNI
	Link     string       `json:",omitempty"` // its end on the host
	IPv4     netip.Prefix `json:",omitzero"`  // with the length of the bridge's subnet
	Gateway4 netip.Addr   `json:",omitzero"`
	IPv6     netip.Prefix `json:",omitzero"` // none, if the bridge has none
	Gateway6 netip.Addr   `json:",omitzero"`
	MAC      string
	Ports    []Binding `json:",omitempty"`

	// Of plugins only.
	More   []netip.Prefix `json:",omitempty"` // further addresses
	Routes []Route        `json:",omitempty"`
	DNS    *DNS           `json:",omitempty"` // nil: they say nothing of it
}

// Route leads to Dst, by a gateway unless that is not valid.
type Route struct {
	Dst     netip.Prefix
	Gateway netip.Addr `json:",omitzero"`
}

// DNS is how names are looked up on a network.
type DNS struct {
	Servers []string `json:",omitempty"`
	Search  []string `json:",omitempty"`
	Options []string `json:",omitempty"`
}
