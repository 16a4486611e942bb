package floor

import "unsafe"

// Supported tells whether there is a floor for this architecture.
const Supported = true

// walkAddr is where the code of the program lies.
func walkAddr() unsafe.Pointer
