package main

import (
	"cmp"
	"math"
	"slices"
	"strings"
)

// A summary is what runs come to.
type summary struct {
	Session session // the last one's; systems and images of all
	Links   []*linkSummary
}

// A linkSummary is that of the runs over one link.
type linkSummary struct {
	path    *path
	Images  []string
	Systems []string
	cells   map[[2]string]*cell // by image and system
	touched map[string]*touched
}

// A cell is the runs of an image on a system.
type cell struct {
	runs   []*run // without errors
	errors []string
	// Medians of the runs.
	Total, Again, CPU       float64
	Down, Peak              float64
	Requests, Connections   float64
	Least, Most             float64 // of Total
	typical                 *run    // whose total is the median, or the nearest below
	Pull, Create, ReadyTime float64 // of the typical run
}

func summarize(facts []fact) *summary {
	s := new(summary)
	all := make(map[string]*touched)
	links := make(map[string]*linkSummary)
	sessions := 0
	for _, f := range facts {
		switch {
		case f.Session != nil:
			sessions++
			s.addSession(f.Session)
		case f.Touched != nil:
			all[f.Touched.Image] = f.Touched
		case f.Run != nil:
			l := links[f.Run.Link]
			if l == nil {
				p, err := parseLink(f.Run.Link)
				if err != nil {
					continue // nothing of ours wrote it
				}
				l = &linkSummary{path: p, cells: make(map[[2]string]*cell), touched: all}
				links[f.Run.Link] = l
				s.Links = append(s.Links, l)
			}
			l.add(f.Run, sessions)
		}
	}
	for _, l := range s.Links {
		l.order(&s.Session)
		for _, c := range l.cells {
			c.settle()
		}
	}
	return s
}

func (s *summary) addSession(n *session) {
	before := s.Session
	s.Session = *n
	for _, a := range before.Systems {
		if !slices.ContainsFunc(s.Session.Systems, func(o about) bool { return o.Name == a.Name }) {
			s.Session.Systems = append(s.Session.Systems, a)
		}
	}
	for _, p := range before.Images {
		if !slices.ContainsFunc(s.Session.Images, func(o picture) bool { return o.Name == p.Name }) {
			s.Session.Images = append(s.Session.Images, p)
		}
	}
}

func (l *linkSummary) add(r *run, session int) {
	r.session = session
	c := l.cell(r.Image, r.System)
	if r.Error != "" {
		c.errors = append(c.errors, r.Error)
		return
	}
	c.runs = append(c.runs, r)
}

func (l *linkSummary) cell(image, system string) *cell {
	k := [2]string{image, system}
	if l.cells[k] == nil {
		l.cells[k] = new(cell)
	}
	return l.cells[k]
}

// order puts images and systems as the session has them.
func (l *linkSummary) order(s *session) {
	have := func(i int, name string) bool {
		for k := range l.cells {
			if k[i] == name {
				return true
			}
		}
		return false
	}
	for _, p := range s.Images {
		if have(0, p.Name) {
			l.Images = append(l.Images, p.Name)
		}
	}
	rank := func(name string) int { return slices.Index(systemNames(), name) }
	for _, a := range s.Systems {
		if have(1, a.Name) {
			l.Systems = append(l.Systems, a.Name)
		}
	}
	slices.SortStableFunc(l.Systems, func(a, b string) int { return rank(a) - rank(b) })
}

func (c *cell) settle() {
	if len(c.runs) == 0 {
		return
	}
	of := func(get func(*run) float64) float64 {
		var list []float64
		for _, r := range c.runs {
			list = append(list, get(r))
		}
		return median(list)
	}
	c.Total = of(func(r *run) float64 { return r.Total })
	c.CPU = of(func(r *run) float64 { return r.CPU })
	c.Down = of(func(r *run) float64 { return float64(r.Down) })
	c.Peak = of(func(r *run) float64 { return float64(r.Peak) })
	c.Requests = of(func(r *run) float64 { return float64(r.Requests) })
	c.Connections = of(func(r *run) float64 { return float64(r.Connections) })
	var again []float64
	for _, r := range c.runs {
		again = append(again, r.Again...)
	}
	c.Again = median(again)
	sorted := slices.Clone(c.runs)
	slices.SortStableFunc(sorted, func(a, b *run) int { return cmp.Compare(a.Total, b.Total) })
	c.Least, c.Most = sorted[0].Total, sorted[len(sorted)-1].Total
	c.typical = sorted[(len(sorted)-1)/2]
	c.Pull, c.Create, c.ReadyTime = c.typical.Pull, c.typical.Create, c.typical.Ready
}

// median of none is NaN.
func median(list []float64) float64 {
	if len(list) == 0 {
		return math.NaN()
	}
	list = slices.Sorted(slices.Values(list))
	n := len(list)
	return (list[(n-1)/2] + list[n/2]) / 2
}

// geomean of none, or of what is not all above zero, is NaN.
func geomean(list []float64) float64 {
	sum := 0.0
	for _, v := range list {
		sum += math.Log(v)
	}
	return math.Exp(sum / float64(len(list)))
}

// warm is the second start that the floor ends with.
func (l *linkSummary) warm(image string) float64 {
	if c := l.cells[[2]string{image, "snapfs-warm"}]; c != nil && len(c.runs) > 0 {
		return c.Total
	}
	if c := l.cells[[2]string{image, "overlayfs"}]; c != nil && len(c.runs) > 0 {
		return c.Again
	}
	return math.NaN()
}

// roundTrips are those that a start cannot do without: the manifest by its tag,
// what it leads to, and the data.
const roundTrips = 3

// floor is the least time a start of the image can take over the link; NaN if
// what it reads is not known.
func (l *linkSummary) floor(image string) float64 {
	t := l.touched[image]
	if t == nil {
		return math.NaN()
	}
	return l.path.seconds(t.Gzip) + roundTrips*l.path.link.RTT.Seconds() + l.warm(image)
}

// A ratio compares systems; it is at best at most Target.
type ratio struct {
	What    string
	Target  float64
	Each    []imageRatio
	Over    float64 // geometric mean over the images; of a ratio that none may exceed, the greatest
	Worst   bool    // Over is the greatest
	Missing string  // why there is none
}

type imageRatio struct {
	Image string
	Ratio float64
}

// A quantity of a run.
type quantity struct {
	name string
	of   func(*run) float64
}

var (
	total = quantity{"time", func(r *run) float64 { return r.Total }}
	again = quantity{"warm start", func(r *run) float64 { return median(r.Again) }}
	down  = quantity{"bytes", func(r *run) float64 { return float64(r.Down) }}
)

// comparisons are what is wanted of snapfs. Base "" is the floor; A+B is the
// time of A and a warm start of B.
var comparisons = []struct {
	what, system, base string
	of                 quantity
	target             float64
	unlimited          bool // on a link without limits; else on one with
	worst              bool
}{
	{"profile and bundle / stargz, optimized images", "snapfs-profile", "stargz-opt", total, 0.5, false, false},
	{"profile and bundle / overlayfs, parallel unpack", "snapfs-profile", "overlayfs-par", total, 0.09, false, false},
	{"profile and bundle / floor", "snapfs-profile", "", total, 1.25, false, false},
	{"profile and bundle / floor, bytes", "snapfs-profile", "", down, 1.15, false, false},
	{"index / stargz, plain eStargz images", "snapfs-index", "stargz", total, 0.8, false, false},
	{"index / SOCI", "snapfs-index", "soci", total, 0, false, false},
	{"nothing known / overlayfs, parallel unpack", "snapfs-nothing", "overlayfs-par", total, 0.75, false, false},
	{"eStargz image / stargz, the same image", "snapfs-esgz", "stargz", total, 0, false, false},
	{"under containerd, profile and bundle / snapctl run + a warm start of containerd's", "ctr-profile", "snapfs-profile+overlayfs-par", total, 1.1, false, false},
	{"under containerd, index / snapctl run + a warm start of containerd's", "ctr-index", "snapfs-index+overlayfs-par", total, 1.1, false, false},
	{"under containerd, nothing known / overlayfs, parallel unpack", "ctr-nothing", "overlayfs-par", total, 0.9, false, false},
	{"warm start / overlayfs, warm start", "snapfs-warm", "overlayfs", again, 1, false, false},
	{"stargz, optimized images / floor", "stargz-opt", "", total, 0, false, false},
	{"profile and bundle / overlayfs, no image slower", "snapfs-profile", "overlayfs", total, 1, true, true},
	{"index / overlayfs, no image slower", "snapfs-index", "overlayfs", total, 1, true, true},
	{"nothing known / overlayfs, no image slower", "snapfs-nothing", "overlayfs", total, 1, true, true},
}

// ratios returns the comparisons that this link is for.
func (l *linkSummary) ratios() (list []ratio) {
	unlimited := l.path.link.BitsPerSecond == 0 && l.path.link.RTT == 0
	for _, c := range comparisons {
		if c.unlimited != unlimited {
			continue
		}
		r := ratio{What: c.what, Target: c.target, Worst: c.worst}
		var values []float64
		for _, image := range l.Images {
			v := l.ratio(image, c.system, c.base, c.of)
			if math.IsNaN(v) {
				continue
			}
			r.Each = append(r.Each, imageRatio{image, v})
			values = append(values, v)
		}
		switch {
		case len(values) == 0:
			r.Missing = "not measured"
			r.Over = math.NaN()
		case c.worst:
			r.Over = slices.Max(values)
		default:
			r.Over = geomean(values)
		}
		list = append(list, r)
	}
	return list
}

// ratio is the median of a system's ratios to another's of the same round, or
// to the floor.
func (l *linkSummary) ratio(image, system, base string, q quantity) float64 {
	mine := l.cells[[2]string{image, system}]
	if mine == nil {
		return math.NaN()
	}
	var list []float64
	for _, r := range mine.runs {
		if base == "" {
			f := l.floor(image)
			if q.name == down.name {
				f = l.floorBytes(image)
			}
			if !math.IsNaN(f) {
				list = append(list, q.of(r)/f)
			}
			continue
		}
		theirs, warm, both := strings.Cut(base, "+")
		o := l.sameRound(image, theirs, r)
		switch w := l.sameRound(image, warm, r); {
		case o == nil || both && w == nil:
		case both:
			list = append(list, q.of(r)/(q.of(o)+again.of(w)))
		default:
			list = append(list, q.of(r)/q.of(o))
		}
	}
	return median(list)
}

// sameRound is a system's run of the round of r, or nil.
func (l *linkSummary) sameRound(image, system string, r *run) *run {
	c := l.cells[[2]string{image, system}]
	if c == nil {
		return nil
	}
	for _, o := range c.runs {
		if o.session == r.session && o.Round == r.Round {
			return o
		}
	}
	return nil
}

func (l *linkSummary) floorBytes(image string) float64 {
	if t := l.touched[image]; t != nil {
		return float64(t.Gzip)
	}
	return math.NaN()
}
