package monitor

type bundled struct{ Runner }
