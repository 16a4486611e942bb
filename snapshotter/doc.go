// Package snapshotter serves containerd's snapshots API: layers of images are
// held by the book of images and readable before they are local, anything else
// is a directory, and a snapshot's mounts are one overlay of both.
//
// A snapshot is active (written to), a view, or committed (a parent of others);
// it is known by a key, and committed ones by a name. A committed snapshot that
// is held has no directory: the book shows all held layers of a chain as one
// [Stack].
//
//	containerd ── Prepare(layer) ──> Layers.Layer: is it ours? ── no ──> a directory to unpack into
//	                                      └ yes ─> committed, or staged ─> Stack ─┐
//	containerd ── Prepare(container) ──> upper directory : directories : image ::data
//
// # Invariants
//
//  1. What containerd says of a layer is believed only as far as the layer's
//     chain ID proves it: see claim.
//  2. Only held layers are below a held layer: see chain.
//  3. A layer that was held when Prepare said so is in Held until its snapshot is
//     removed.
//  4. No transaction of the database is open, and no lock is held, while the book
//     is asked for something.
//  5. What was answered is on disk: a crash or a power cut after it loses at most
//     what was written into active snapshots and not synced.
//  6. A directory whose snapshot does not exist is nobody's. An ID is never used twice.
//
// # On disk
//
//	Root/metadata.db             bbolt: containerd's format, and what is held
//	Root/snapshots/ID/{fs,work}  upper and work directory
//	Run/NAME                     symbolic links to such a directory, for chains that do not fit into a mount's options
//
// metadata.db is read page by page before it is opened. If it is torn, New says
// [ErrTorn] and changes nothing. It is not set aside and begun anew by itself, because
// containerd's own database goes on naming what was in it, and the directories are
// all that is left of containers' files. Whoever wants to begin anew stops containerd
// and snapd, saves what they need from Root/snapshots/*/fs, removes Root, and removes the
// images and containers on this snapshotter from containerd; the layers that the book
// holds are kept meanwhile, and need not be fetched again.
package snapshotter
