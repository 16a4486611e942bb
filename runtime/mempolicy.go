package runtime

import (
	"errors"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// memPolicies are the MPOL_* of include/uapi/linux/mempolicy.h.
var memPolicies = map[specs.MemoryPolicyModeType]uintptr{
	specs.MpolDefault: 0, specs.MpolPreferred: 1, specs.MpolBind: 2, specs.MpolInterleave: 3, specs.MpolLocal: 4,
	specs.MpolPreferredMany: 5, specs.MpolWeightedInterleave: 6,
}

var memPolicyFlags = map[specs.MemoryPolicyFlagType]uintptr{
	specs.MpolFNumaBalancing: 1 << 13, specs.MpolFRelativeNodes: 1 << 14, specs.MpolFStaticNodes: 1 << 15,
}

// A memPolicy is what set_mempolicy(2) takes.
type memPolicy struct {
	mode  uintptr
	nodes []byte // a mask of whole words; none for no nodes
}

func planMemPolicy(m *specs.LinuxMemoryPolicy) (*memPolicy, error) {
	if m == nil {
		return nil, nil
	}
	mode, ok := memPolicies[m.Mode]
	if !ok {
		return nil, fmt.Errorf("mode %q is none", m.Mode)
	}
	for _, f := range m.Flags {
		bit, ok := memPolicyFlags[f]
		if !ok {
			return nil, fmt.Errorf("flag %q is none", f)
		}
		mode |= bit
	}
	nodes, err := planCPUs(m.Nodes) // a list of the same kind
	if err != nil {
		return nil, fmt.Errorf("nodes: %q is no list of memory nodes", m.Nodes)
	}
	switch m.Mode {
	case specs.MpolDefault, specs.MpolLocal:
		if len(nodes) > 0 || len(m.Flags) > 0 {
			return nil, fmt.Errorf("%s has neither nodes nor flags", m.Mode)
		}
	case specs.MpolPreferred: // none: where the CPU is
	default:
		if len(nodes) == 0 {
			return nil, fmt.Errorf("%s needs nodes", m.Mode)
		}
	}
	if mode&(memPolicyFlags[specs.MpolFRelativeNodes]|memPolicyFlags[specs.MpolFStaticNodes]) == 3<<14 {
		return nil, errors.New("flags: nodes cannot be both static and relative")
	}
	return &memPolicy{mode, nodes}, nil
}

// memoryPolicy sets the policy of the process, and so of the programs it executes.
func (p *program) memoryPolicy(m *memPolicy) {
	if m == nil {
		return
	}
	p.step = "memoryPolicy"
	var mask, bits uintptr
	if n := len(m.nodes); n > 0 {
		b := p.bytes(n)
		copy(b, m.nodes)
		mask, bits = addr(b), uintptr(n)*8+1 // the kernel takes one less (mm/mempolicy.c, get_nodes)
	}
	p.add(unix.SYS_SET_MEMPOLICY, m.mode, mask, bits)
}
