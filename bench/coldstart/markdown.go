package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// markdown is the summary for people who read text.
func (s *summary) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "## Cold starts\n\n%s\n", s.where())
	for _, l := range s.Links {
		l.markdown(&b)
	}
	var missing []string
	for _, a := range s.Session.Systems {
		if a.Missing != "" {
			missing = append(missing, fmt.Sprintf("- %s: %s\n", a.Name, a.Missing))
		}
	}
	if len(missing) > 0 {
		fmt.Fprintf(&b, "\nNot measured:\n\n%s", strings.Join(missing, ""))
	}
	return b.String()
}

// where says on what this was measured.
func (s *summary) where() string {
	n := &s.Session
	return fmt.Sprintf("%s, %d cores, %d GB, Linux %s; snapfs %s; %s.", n.CPU, n.Cores, (n.MemoryMB+512)>>10, n.Kernel, n.Commit, n.Begun.Format("2006-01-02"))
}

func (l *linkSummary) title() string {
	k := l.path.link
	if k.BitsPerSecond == 0 && k.RTT == 0 {
		return "loopback, no limit"
	}
	return fmt.Sprintf("%s/s each way, %v round trip", bits(k.BitsPerSecond), k.RTT)
}

func bits(n int64) string {
	switch {
	case n == 0:
		return "unlimited bits"
	case n >= 1e9:
		return fmt.Sprintf("%g Gbit", float64(n)/1e9)
	}
	return fmt.Sprintf("%g Mbit", float64(n)/1e6)
}

func (l *linkSummary) markdown(b *strings.Builder) {
	least, most := math.MaxInt, 0
	for _, c := range l.cells {
		if n := len(c.runs); n > 0 {
			least, most = min(least, n), max(most, n)
		}
	}
	fmt.Fprintf(b, "\n### Link: %s; medians of %s runs\n", l.title(), span(least, most))
	base := "overlayfs-par"
	l.table(b, "From nothing to ready, s (ratio to "+base+")", func(image, system string, c *cell) string {
		text := fmt.Sprintf("%.2f", c.Total)
		if r := l.ratio(image, system, base, total); !math.IsNaN(r) && system != base {
			text += fmt.Sprintf(" (%.2f)", r)
		}
		return text
	}, func(image string) string { return number("%.2f", l.floor(image)) })
	l.table(b, "Of it: until the image could be used + until the process was made + until ready, s", func(_, _ string, c *cell) string {
		return fmt.Sprintf("%.2f + %.2f + %.2f", c.Pull, c.Create, c.ReadyTime)
	}, nil)
	l.table(b, "MB from the registry until ready", func(_, _ string, c *cell) string { return fmt.Sprintf("%.2f", c.Down/1e6) },
		func(image string) string { return number("%.2f", l.floorBytes(image)/1e6) })
	l.table(b, "Requests / connections until ready", func(_, _ string, c *cell) string { return fmt.Sprintf("%.0f / %.0f", c.Requests, c.Connections) }, nil)
	l.table(b, secondStart, func(_, _ string, c *cell) string { return fmt.Sprintf("%.0f", c.Again*1e3) }, nil)
	l.table(b, "Processor time of the system's processes until ready, s", func(_, _ string, c *cell) string { return fmt.Sprintf("%.2f", c.CPU) }, nil)
	l.table(b, "Peak resident memory of the system's processes, MB", func(_, _ string, c *cell) string { return fmt.Sprintf("%.0f", c.Peak/1e6) }, nil)
	l.reads(b)
	l.ratioTable(b)
	l.failures(b)
}

const secondStart = "Second start, ms"

func number(format string, v float64) string {
	if math.IsNaN(v) {
		return ""
	}
	return fmt.Sprintf(format, v)
}

func span(least, most int) string {
	switch {
	case most == 0:
		return "no"
	case least == most:
		return fmt.Sprint(most)
	}
	return fmt.Sprintf("%d to %d", least, most)
}

// table has a row for each system, and one for the floor if there is one.
func (l *linkSummary) table(b *strings.Builder, title string, show func(image, system string, c *cell) string, floor func(string) string) {
	fmt.Fprintf(b, "\n**%s**\n\n| | %s |\n|---%s|\n", title, strings.Join(l.Images, " | "), strings.Repeat("|---", len(l.Images)))
	for _, system := range l.Systems {
		if isWarm(system) && title != secondStart {
			continue
		}
		fmt.Fprintf(b, "| %s |", system)
		for _, image := range l.Images {
			text := ""
			if c := l.cells[[2]string{image, system}]; c != nil {
				if len(c.runs) > 0 {
					text = show(image, system, c)
				} else {
					text = "failed"
				}
			}
			fmt.Fprintf(b, " %s |", text)
		}
		b.WriteByte('\n')
	}
	if floor == nil {
		return
	}
	b.WriteString("| *floor* |")
	for _, image := range l.Images {
		fmt.Fprintf(b, " %s |", floor(image))
	}
	b.WriteByte('\n')
}

// reads shows what the images' starts read.
func (l *linkSummary) reads(b *strings.Builder) {
	if len(l.touched) == 0 {
		return
	}
	b.WriteString("\n**What a start reads of its image**\n\n| | files | pages, MB | chunks of 64 KiB | MB | gzip, MB | one zstd stream, MB |\n|---|---|---|---|---|---|---|\n")
	for _, image := range l.Images {
		if t := l.touched[image]; t != nil {
			fmt.Fprintf(b, "| %s | %d | %.2f | %d | %.2f | %.2f | %.2f |\n", image, t.Files, float64(t.Pages)/1e6, t.Chunks,
				float64(t.Plain)/1e6, float64(t.Gzip)/1e6, float64(t.Zstd)/1e6)
		}
	}
}

func (l *linkSummary) ratioTable(b *strings.Builder) {
	fmt.Fprintf(b, "\n**Ratios: medians within rounds; geometric mean over images**\n\n| snapfs … / … | mean | wanted | %s |\n|---|---|---|%s\n",
		strings.Join(l.Images, " | "), strings.Repeat("---|", len(l.Images)))
	for _, r := range l.ratios() {
		wanted := ""
		if r.Target > 0 {
			wanted = fmt.Sprintf("≤ %g", r.Target)
		}
		mean := number("%.2f", r.Over)
		switch {
		case r.Missing != "":
			mean = r.Missing
		case r.Worst:
			mean += " at worst"
		}
		fmt.Fprintf(b, "| %s | %s | %s |", r.What, mean, wanted)
		for _, image := range l.Images {
			text := ""
			if i := slices.IndexFunc(r.Each, func(e imageRatio) bool { return e.Image == image }); i >= 0 {
				text = fmt.Sprintf("%.2f", r.Each[i].Ratio)
			}
			fmt.Fprintf(b, " %s |", text)
		}
		b.WriteByte('\n')
	}
}

// beginning is the first n bytes of a text, on one line.
func beginning(s string, n int) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}

func (l *linkSummary) failures(b *strings.Builder) {
	var lines []string
	for _, image := range l.Images {
		for _, system := range l.Systems {
			c := l.cells[[2]string{image, system}]
			if c == nil || len(c.errors) == 0 {
				continue
			}
			lines = append(lines, fmt.Sprintf("- %s, %s: %d of %d: %s\n", system, image, len(c.errors), len(c.errors)+len(c.runs), beginning(c.errors[0], 400)))
		}
	}
	if len(lines) > 0 {
		fmt.Fprintf(b, "\nFailed runs:\n\n%s", strings.Join(lines, ""))
	}
}
