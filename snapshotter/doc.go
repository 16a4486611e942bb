// Package snapshotter serves containerd's snapshots API: layers of images are
// held by the book of images and readable before they are local, anything else
// is a directory, and a snapshot's mounts are one overlay of both.
package snapshotter
