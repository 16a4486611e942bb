package runtime

import (
	"slices"
	"strings"
)

// MountOptions are the mount options that NewPlan knows, sorted; others are given to the file system.
func MountOptions() []string {
	list := []string{"bind", "rbind", "idmap", "ridmap", "defaults", "tmpcopyup"}
	for name := range mountAttrs {
		list = append(list, name, "r"+name)
	}
	for name := range propagations {
		list = append(list, name, "r"+name)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// Namespaces are the namespaces that NewPlan knows, sorted.
func Namespaces() []string {
	var list []string
	for _, n := range sortedKeys(namespaces) {
		list = append(list, string(n))
	}
	return list
}

// Capabilities are the names of those that NewPlan knows, by number.
func Capabilities() []string {
	var list []string
	for n := range strings.SplitSeq(capNames, " ") {
		list = append(list, "CAP_"+n)
	}
	return list
}

// MemoryPolicies are the modes and the flags of linux.memoryPolicy that NewPlan knows, sorted.
func MemoryPolicies() (modes, flags []string) {
	for _, m := range sortedKeys(memPolicies) {
		modes = append(modes, string(m))
	}
	for _, f := range sortedKeys(memPolicyFlags) {
		flags = append(flags, string(f))
	}
	return modes, flags
}
