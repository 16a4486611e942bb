//go:build !amd64

package floor

import "unsafe"

// Supported tells whether there is a floor for this architecture.
const Supported = false

func walkAddr() unsafe.Pointer { panic("unreachable: Write checks Supported") }
