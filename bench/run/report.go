package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// A result is all that a run measured.
type result struct {
	Starts  []row    `json:",omitempty"`
	Batches []row    `json:",omitempty"`
	Batch   int      `json:",omitempty"` // starts in each
	Execs   []row    `json:",omitempty"`
	Pool    []row    `json:",omitempty"` // to the first byte
	Memory  []sample `json:",omitempty"`
	Idle    []crowd  `json:",omitempty"`
}

// A row is one runner.
type row struct {
	Runner           string
	Median, P10, P90 float64            // milliseconds
	Ratios           map[string]float64 // medians of those to others of the same round
	N                int
}

// bases are who everybody is compared to, where they take part.
var bases = []string{"crun", "floor", "docker", "cold"}

func isBase(name string) bool { return slices.Contains(bases, name) }

func newRow(name string, times []time.Duration, bases map[string][]time.Duration) row {
	r := row{Runner: name, N: len(times), Ratios: map[string]float64{}}
	var ms []float64
	for _, t := range times {
		ms = append(ms, t.Seconds()*1e3)
	}
	r.Median, r.P10, r.P90 = percentile(ms, 50), percentile(ms, 10), percentile(ms, 90)
	for base, theirs := range bases {
		var ratios []float64
		for i, t := range times {
			ratios = append(ratios, float64(t)/float64(theirs[i]))
		}
		r.Ratios[base] = percentile(ratios, 50)
	}
	return r
}

func percentile[T cmp.Ordered](list []T, p int) T {
	list = slices.Sorted(slices.Values(list))
	return list[(len(list)-1)*p/100]
}

func (r *result) print(w io.Writer, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	table(t, "start to end", r.Starts)
	table(t, fmt.Sprintf("%d starts, %d at a time", r.Batch, lanes), r.Batches)
	table(t, "exec", r.Execs)
	table(t, "start to first byte", r.Pool)
	for _, s := range r.Memory {
		fmt.Fprintf(t, "\t\t\t\nmemory %s\tRSS MB\tanonymous\t\n", s.When)
		for _, p := range s.Processes {
			fmt.Fprintf(t, "%s\t%.1f\t%.1f\t\n", p.Name, p.RSS, p.Anon)
		}
		fmt.Fprintf(t, "total\t%.1f\t\t\n", s.Total)
	}
	if err := t.Flush(); err != nil || len(r.Idle) == 0 {
		return err
	}
	return printCrowds(w, r.Idle)
}

// table writes rows, with a column for each of the bases that took part.
func table(w io.Writer, title string, rows []row) {
	if len(rows) == 0 {
		return
	}
	var columns []string
	for _, base := range bases {
		if _, ok := rows[0].Ratios[base]; ok {
			columns = append(columns, base)
		}
	}
	fmt.Fprintf(w, "%s\tmedian ms\tp10\tp90\t", title)
	for _, base := range columns {
		fmt.Fprintf(w, "to %s\t", base)
	}
	fmt.Fprintf(w, "rounds\t\n")
	for _, x := range rows {
		fmt.Fprintf(w, "%s\t%.2f\t%.2f\t%.2f\t", x.Runner, x.Median, x.P10, x.P90)
		for _, base := range columns {
			fmt.Fprintf(w, "%.3f\t", x.Ratios[base])
		}
		fmt.Fprintf(w, "%d\t\n", x.N)
	}
	fmt.Fprintf(w, "\t\n")
}
