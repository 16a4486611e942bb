package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// A row is one operation on one system.
type row struct {
	Op, System       string
	Median, Min, Max float64 // milliseconds
	Ratio            float64 // median of those to the base of the same round
	N                int
}

func newRow(op, system string, times, base []time.Duration) row {
	r := row{Op: op, System: system, N: len(times)}
	ratios := make([]float64, len(times))
	ms := make([]float64, len(times))
	for i, t := range times {
		ms[i] = t.Seconds() * 1e3
		ratios[i] = float64(t) / float64(base[i])
	}
	r.Median, r.Min, r.Max, r.Ratio = median(ms), slices.Min(ms), slices.Max(ms), median(ratios)
	return r
}

func median[T cmp.Ordered](list []T) T {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}

func (r *result) table(w io.Writer) error {
	fmt.Fprintf(w, "Linux %s, %d CPUs; %s: %d names, %d files of %.0f MB, %d of them of 1 B to 16 KiB; a large one of %d MiB\n\n", r.Kernel, r.CPUs,
		r.Tree.Source, r.Tree.Names, r.Tree.Regular, float64(r.Tree.Bytes)/1e6, r.Tree.Small, r.Tree.Large>>20)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	op := ""
	for _, x := range slices.Concat(r.Files, r.Mounts) {
		if op == "" {
			fmt.Fprintf(t, "operation\tsystem\tmedian ms\tleast\tmost\tratio\t\n")
		}
		if op != x.Op {
			op = x.Op
			fmt.Fprintf(t, "\t\t\t\t\t\t\n")
		}
		fmt.Fprintf(t, "%s\t%s\t%.2f\t%.2f\t%.2f\t%.2f\t\n", x.Op, x.System, x.Median, x.Min, x.Max, x.Ratio)
	}
	if len(r.Builds) > 0 {
		fmt.Fprintf(t, "\t\t\t\t\t\t\nmetadata of\topen TOCs\tkeep indexes\tmerge\twrite image\ttotal ms\tpeak RSS MB\t\n")
	}
	for _, b := range r.Builds {
		fmt.Fprintf(t, "%d files\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t\n", b.Files, b.Open, b.Keep, b.Merge, b.Write, b.Total, b.PeakMB)
	}
	return t.Flush()
}
