// Package node knows how a containerd has to be configured for snapd: it
// prints that, merges it into a configuration file that people have written,
// and finds out what is wrong on a node.
//
// A file is changed as text, at the places that a parser names, so comments and
// order stay. What the change has done is then compared, as data, with what it
// was meant to do, and anything else is refused: a node whose containerd does not
// start is worse than one without snapd.
package node
