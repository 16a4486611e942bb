package containers

import (
	"math/rand/v2"
	"regexp"
)

// nameOK is what a container may be called: the letters Docker allows.
var nameOK = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// idOK is what an ID looks like.
var idOK = regexp.MustCompile(`^[0-9a-f]{64}$`)

var (
	adjectives = []string{
		"amber", "brisk", "calm", "dapper", "eager", "fabled", "gentle", "humble", "ideal", "jolly", "keen", "lucid", "mellow",
		"nimble", "open", "patient", "quiet", "ready", "steady", "tidy", "upbeat", "vivid", "warm", "young", "zesty",
	}
	nouns = []string{
		"anchor", "basin", "crane", "dock", "engine", "ferry", "gantry", "harbor", "island", "jetty", "keel", "lantern", "mast",
		"navy", "oar", "pier", "quay", "rudder", "sail", "tide", "umber", "vessel", "wharf", "yard", "zephyr",
	}
)

// randomName makes up a name that taken does not know.
func randomName(taken func(string) bool) string {
	for n := 0; ; n++ {
		name := adjectives[rand.N(len(adjectives))] + "_" + nouns[rand.N(len(nouns))]
		if n >= 4 {
			name += string('0' + rune(rand.N(10)))
		}
		if n >= 16 {
			name += string('0'+rune(rand.N(10))) + string('0'+rune(rand.N(10)))
		}
		if !taken(name) {
			return name
		}
	}
}
