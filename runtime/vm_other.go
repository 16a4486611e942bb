//go:build !amd64 && !arm64

package runtime

import "unsafe"

const supported = false

func clone(*cloneArgs, *op, int, *outcome) int { panic("unreachable: Start checks supported") }

func setMask(_, _ *uint64) {}

func initAddr() unsafe.Pointer { panic("unreachable: Start checks supported") }
