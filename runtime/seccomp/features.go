package seccomp

import (
	goruntime "runtime"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Actions are the actions that Compile knows.
func Actions() []string {
	return names(specs.ActAllow, specs.ActErrno, specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActLog, specs.ActNotify, specs.ActTrace, specs.ActTrap)
}

// Operators are those of arguments.
func Operators() []string {
	return names(specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpLessEqual, specs.OpLessThan, specs.OpMaskedEqual, specs.OpNotEqual)
}

// Archs are the architectures that this machine runs. A profile may name others.
func Archs() []string { return names(nativeABIs[goruntime.GOARCH]...) }

// Flags are the flags of filters.
func Flags() []string {
	return append([]string{"SECCOMP_FILTER_FLAG_TSYNC"}, names(specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow, specs.LinuxSeccompFlagWaitKillableRecv)...)
}

func names[T ~string](list ...T) []string {
	var out []string
	for _, v := range list {
		out = append(out, string(v))
	}
	return out
}
