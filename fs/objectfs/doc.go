// Package objectfs is the FUSE file system that serves the bytes of objects
// which are not complete on the local disk. It has a root, 256 directories named
// 00 to ff, and in them the objects, named by the other 62 hex digits of their
// sum: the layout of [layers.Sum.Path]. Overlay mounts have it as their last
// data-only layer, so only files that the store lacks are looked for here.
//
// The file system outlives the process that serves it. The kernel keeps what it
// knows about a mount as long as anybody holds its /dev/fuse descriptor:
//
//	supervisor                    worker 1          worker 2
//	open /dev/fuse, mount
//	Handshake: INIT → reply
//	      fd, INIT bytes ───────→ Serve
//	                              kill -9
//	      fd, INIT bytes ───────────────────────→ Serve(resend): replays INIT into
//	                                              itself, asks the kernel to send
//	                                              again what worker 1 left unanswered
//
// Invariants: a [Nodes] number means the same object to every worker of a mount;
// handles carry no state (OPEN is answered by ENOSYS, so there are none); every
// request may be served twice.
package objectfs
