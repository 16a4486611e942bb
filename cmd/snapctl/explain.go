package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/snapfs/snapfs/internal/control"
)

// explainStart is the verb explain.
func explainStart(ctx context.Context, env *Env, args []string) error {
	var a control.ExplainArgs
	f := &flagSet{
		usage: "explain [OPTIONS] CONTAINER|IMAGE",
		about: "Tell a container's or image's story: which of its layers start lazily, and why others do not;\n" +
			"whose word their indexes are; where the time of the last start went, and which files it waited for.",
		example: "snapctl explain web",
	}
	f.add("type", "KIND", "look for a container or an image only", func(s string) error {
		if a.Type = s; s != "container" && s != "image" {
			return fmt.Errorf("%q: want container or image", s)
		}
		return nil
	})
	rest, err := f.parse(env, args, 1, 1)
	if err != nil {
		return err
	}
	a.Name = rest[0]
	var e control.Explanation
	if err := env.call(ctx, control.OpExplain, a, &e); err != nil {
		return err
	}
	if env.JSON {
		return env.printJSON(e)
	}
	s := &story{now: time.Now()}
	s.tell(&e)
	_, err = env.Stdout.WriteString(s.String())
	return err
}

// A story is text in paragraphs.
type story struct {
	strings.Builder
	now time.Time
}

// say adds a line. What comes from outside must not speak to the terminal.
func (s *story) say(format string, args ...any) {
	s.WriteString(strings.TrimRight(printable(fmt.Sprintf(format, args...)), " ") + "\n")
}

func (s *story) title(text string) { s.say(""); s.say("%s", text) }

// rows adds a table, indented.
func (s *story) rows(t *table) {
	for line := range strings.Lines(t.String()) {
		s.WriteString("  " + line)
	}
}

func (s *story) tell(e *control.Explanation) {
	if c := e.Container; c != nil {
		s.say("Container %s (%s) on %s: %s", c.Name, shortID(c.ID), c.Image, lowerFirst(status(*c, s.now)))
		if c.Error != "" {
			s.say("  %s", c.Error)
		}
	}
	switch {
	case e.Image != nil:
		s.image(e)
	case e.Left == nil:
		s.say("Its image has been removed.")
	default:
		s.say("Image %s", cmp.Or(e.Left.Ref, e.Left.Digest))
	}
	if l := e.Left; l != nil {
		s.say("  It was left to containerd, %s, which unpacks it like any snapshotter's:", lowerFirst(ago(l.At, s.now)))
		s.say("  %s", l.Why)
	}
	if e.Image == nil && e.Container == nil {
		return
	}
	if e.Image != nil {
		s.layers(e.Image)
	}
	if e.Start != nil {
		s.start("Last start", e.Start)
	} else {
		s.title("Last start: none is recorded.")
	}
	if p := e.Pull; p != nil && (e.Start == nil || len(phasesOf(e.Start, true)) == 0 || p.Began.After(e.Start.Began)) {
		s.start("Last pull", p)
	}
	if e.Image != nil {
		s.profile(e.Image.Profile)
		s.misses(e)
	}
}

// lowerFirst makes the beginning of a sentence the middle of one.
func lowerFirst(s string) string {
	if s == "" || s == "N/A" {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}

func (s *story) image(e *control.Explanation) {
	i := e.Image
	s.say("Image %s (%s, %s), %s", i.Ref, shortID(i.ID), i.Platform, i.Digest)
	if i.Quarantine != "" {
		s.say("  QUARANTINED: nothing new is started on it. Its index promised other bytes than it has:")
		if i.QuarantineFile != "" {
			s.say("  those of %s", i.QuarantineFile)
		}
		s.say("  %s", i.Quarantine)
		s.say("  snapctl pull brings it in again, without that index.")
	}
	if len(i.Asked) > 0 {
		s.say("  containerd has asked for it, as %s.", strings.Join(i.Asked, ", "))
	}
	lazy := 0
	for _, l := range i.LayerDetails {
		if l.Lazy {
			lazy++
		}
	}
	n := len(i.LayerDetails)
	switch {
	case i.Complete && lazy == n:
		s.say("  It can start lazily, and all of it (%s) is local: no read waits for the network.", size(i.Size))
	case i.Complete:
		s.say("  All of it (%s) is local: no read waits for the network.", size(i.Size))
	case lazy == n:
		s.say("  It starts lazily: what is read and not local comes while it runs. %s of %s are local.", size(i.Local), size(i.Size))
	default:
		s.say("  %d of %d layers start lazily; the others are fetched whole, first. %s of %s are local.", lazy, n, size(i.Local), size(i.Size))
	}
	if len(e.Running) > 0 {
		s.say("  Running on it: %s", strings.Join(e.Running, ", "))
	}
}

func (s *story) layers(i *control.ImageDetail) {
	s.title("Layers, the lowest first:")
	t := newTable("LAYER", "SIZE", "FORMAT", "LAZY", "LOCAL", "INDEX")
	var why []string
	for _, l := range i.LayerDetails {
		lazy, local := "no", "0%"
		if l.Lazy {
			lazy = "yes"
		}
		switch {
		case l.Complete:
			local = "all"
		case l.Size > 0:
			local = fmt.Sprintf("%d%%", 100*l.Local/l.Size)
		}
		t.row(shortID(l.Digest), size(l.Size), cmp.Or(l.Format, "?"), lazy, local, origin(l))
		if l.Why != "" {
			why = append(why, fmt.Sprintf("  %s %s: %s", shortID(l.Digest), whyNot(l), l.Why))
		}
	}
	s.rows(t)
	for _, line := range why {
		s.say("%s", line)
	}
}

// whyNot is what a layer's Why is the reason of.
func whyNot(l control.LayerDetail) string {
	if l.Lazy {
		return "had to be fetched whole once"
	}
	return "does not start lazily"
}

// origin says where a layer's index is from, and why it is believed.
func origin(l control.LayerDetail) string {
	switch l.Origin {
	case "toc":
		return "table of contents in the layer, by its manifest's word"
	case "own":
		return "made here, from all of the layer"
	case "soci":
		return "SOCI's (" + shortID(l.Index) + ")"
	case "published":
		if l.Signer != "" {
			return "published (" + shortID(l.Index) + "), signed by " + l.Signer
		}
		return "published (" + shortID(l.Index) + "), unsigned: this daemon trusts any"
	}
	return l.Origin
}

// readyBy says what made a container ready.
var readyBy = map[string]string{
	"line": "it wrote the line that --ready asks for", "port": "it listened at its port", "file": "its file was there",
	"health": "its health check succeeded", "quiet": "it read nothing any more that was not local", "exit": "it had ended",
}

func (s *story) start(what string, r *control.Start) {
	head := fmt.Sprintf("%s, %s", what, lowerFirst(ago(r.Began, s.now)))
	switch {
	case r.Error != "":
		s.title(head + ": failed")
		s.say("  %s", r.Error)
	case r.Kind == "pull":
		s.title(fmt.Sprintf("%s: done after %s", head, took(r.Ready)))
	case r.Ready > 0 && r.ReadyBy == "":
		s.title(fmt.Sprintf("%s: it ended after %s, before it was ready", head, took(r.Ready)))
	case r.Ready > 0:
		s.title(fmt.Sprintf("%s: ready after %s (%s)", head, took(r.Ready), cmp.Or(readyBy[r.ReadyBy], r.ReadyBy)))
	case r.Running > 0:
		s.title(head + ": it runs, and is not ready yet")
	default:
		s.title(head + ": it does not run yet")
	}
	if r.Partial {
		s.say("  The daemon's worker was replaced meanwhile: what was before is not known.")
	}
	s.phases(r)
	s.waits(r)
}

// A stretch is a phase as it is told: of all layers together.
type stretch struct {
	name       string
	begin, end time.Duration
	note       string
}

// phasesOf gathers the phases of a start; with bringing only those that bring an image in.
func phasesOf(r *control.Start, bringing bool) (list []stretch) {
	at := map[string]int{}
	slowest := map[string]control.Phase{}
	count, bytes := map[string]int{}, map[string]int64{}
	for _, p := range r.Phases {
		if p.Name == "image" || bringing && slices.Contains([]string{"mount", "create", "monitor"}, p.Name) {
			continue // it is told by its parts
		}
		i, known := at[p.Name]
		if !known {
			i = len(list)
			at[p.Name] = i
			list = append(list, stretch{name: p.Name, begin: p.Begin, end: p.End})
		}
		list[i].begin, list[i].end = min(list[i].begin, p.Begin), max(list[i].end, p.End)
		if p.ID != "" {
			count[p.Name]++
			bytes[p.Name] += p.Bytes
			if q := slowest[p.Name]; q.ID == "" || p.End-p.Begin > q.End-q.Begin {
				slowest[p.Name] = p
			}
		}
	}
	for i := range list {
		p := &list[i]
		if n := count[p.name]; n > 0 {
			p.note = fmt.Sprintf("%d layers, the slowest %s with %s", n, slowest[p.name].ID, took(slowest[p.name].End-slowest[p.name].Begin))
			if n == 1 {
				p.note = "1 layer"
			}
			if b := bytes[p.name]; b > 0 {
				p.note += ", " + size(b)
			}
		}
	}
	return list
}

// meanings of phases, for those who have not seen them before.
var meanings = map[string]string{
	"resolve": "the registry said what the name stands for", "referrers": "meanwhile, a published index was looked for, and read",
	"index": "tables of contents were read", "pull": "layers were fetched whole", "build": "the metadata image was written",
	"mount": "the image was mounted", "create": "the container's directory was made", "monitor": "its monitor came up",
	"start": "its first process came up", "until ready": "",
}

func (s *story) phases(r *control.Start) {
	list := phasesOf(r, false)
	if r.Running > 0 {
		var prepared time.Duration
		for _, p := range list {
			prepared = max(prepared, p.end)
		}
		if !r.Partial {
			list = append(list, stretch{name: "start", begin: min(prepared, r.Running), end: r.Running})
		}
		if r.Ready >= r.Running {
			list = append(list, stretch{name: "until ready", begin: r.Running, end: r.Ready})
		}
	}
	if len(list) == 0 {
		return
	}
	t := newTable("PHASE", "BEGAN", "TOOK", "")
	for i, p := range list {
		note := p.note
		if r.Error != "" && i == len(list)-1 {
			note = "it failed here"
		} else if m := meanings[p.name]; m != "" {
			note = strings.TrimSuffix(m+": "+note, ": ")
		}
		t.row(p.name, took(p.begin), took(p.end-p.begin), note)
	}
	s.rows(t)
}

func (s *story) waits(r *control.Start) {
	c := r.Counters
	if c.HTTPRequests > 0 || c.Fetched > 0 {
		s.say("  Meanwhile the daemon made %s and received %s; %s of it were layers' bytes that were not local.", plural(c.HTTPRequests, "request"), size(c.HTTPBytes), size(c.Fetched))
	}
	if c.Delivered > 0 {
		s.say("  A boot bundle brought %s (uncompressed) of what earlier starts have read.", size(c.Delivered))
	}
	if r.Kind == "pull" {
		return
	}
	if r.Missed == 0 {
		if r.Running > 0 && !r.Partial {
			s.say("  No read waited for the network.")
		}
		return
	}
	s.say("  %s of %s waited for the network, for %s of that time together:", plural(int64(r.Missed), "read"), plural(int64(len(r.Waits)+r.More), "file"), took(r.Waiting))
	t := newTable("WAITED", "READS", "LONGEST", "BYTES", "FIRST AT", "FILE")
	for _, w := range r.Waits[:min(len(r.Waits), topWaits)] {
		name := cmp.Or(w.Path, w.Object)
		if w.Failed > 0 {
			name += fmt.Sprintf(" (%s failed)", plural(int64(w.Failed), "read"))
		}
		t.row(took(w.Took), fmt.Sprint(w.N), took(w.Longest), size(w.Bytes), took(w.First), name)
	}
	s.rows(t)
	if more := len(r.Waits) + r.More - topWaits; more > 0 {
		s.say("  … and %s", plural(int64(more), "more file"))
	}
}

// topWaits is how many files are told; --json has up to 64.
const topWaits = 10

func (s *story) profile(p control.ProfileInfo) {
	if p.Starts == 0 {
		s.title("Boot profile: none. No start has been recorded until it was ready.")
		return
	}
	s.title(fmt.Sprintf("Boot profile: of %s, %s in %s. A cold start fetches them first.", plural(int64(p.Starts), "start"), size(p.Bytes), plural(int64(p.Chunks), "chunk")))
}

func (s *story) misses(e *control.Explanation) {
	m := e.Misses
	since := duration(max(s.now.Sub(e.Since), 0))
	if m.N == 0 {
		s.say("No read of it has waited for the network since the daemon's worker started (%s ago).", lowerFirst(since))
		return
	}
	text := fmt.Sprintf("%s of it waited for the network since the daemon's worker started (%s ago): half of them at most %s, 99 of 100 at most %s",
		plural(m.N, "read"), lowerFirst(since), took(m.P50), took(m.P99))
	if m.Failed > 0 {
		text += fmt.Sprintf("; %d failed", m.Failed)
	}
	s.say("%s.", text)
}

// took is a time with three digits.
func took(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%.2fms", max(d.Seconds(), 0)*1000)
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.2fms", d.Seconds()*1000)
	case d < time.Second:
		return fmt.Sprintf("%.0fms", d.Seconds()*1000)
	case d < 100*time.Second:
		return fmt.Sprintf("%.2fs", d.Seconds())
	}
	return d.Round(time.Second).String()
}

func plural(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
