//go:build !amd64 && !arm64

package runtime

const supported = false

func clone(*cloneArgs, *op, int, *outcome) int { panic("unreachable: Start checks supported") }

func setMask(_, _ *uint64) {}
