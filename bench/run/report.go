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
	Starts []row    `json:",omitempty"`
	Memory []sample `json:",omitempty"`
	Idle   []crowd  `json:",omitempty"`
}

// A row is one runner.
type row struct {
	Runner           string
	Median, P10, P90 float64 // milliseconds
	Ratio            float64 // median of those to crun of the same round
	N                int
}

func newRow(name string, times, base []time.Duration) row {
	var ms, ratios []float64
	for i, t := range times {
		ms = append(ms, t.Seconds()*1e3)
		ratios = append(ratios, float64(t)/float64(base[i]))
	}
	return row{name, percentile(ms, 50), percentile(ms, 10), percentile(ms, 90), percentile(ratios, 50), len(times)}
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
	if len(r.Starts) > 0 {
		fmt.Fprintf(t, "start to end\tmedian ms\tp10\tp90\tratio\trounds\t\n")
	}
	for _, x := range r.Starts {
		fmt.Fprintf(t, "%s\t%.2f\t%.2f\t%.2f\t%.2f\t%d\t\n", x.Runner, x.Median, x.P10, x.P90, x.Ratio, x.N)
	}
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
