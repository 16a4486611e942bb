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
	CPU, CPURatio    float64 // the same of the CPU time of the thread alone
	N                int
}

func newRow(op, system string, times, base []spent) row {
	wall := func(s spent) time.Duration { return s.wall }
	cpu := func(s spent) time.Duration { return s.cpu }
	ms, ratios := series(times, base, wall)
	cpuMS, cpuRatios := series(times, base, cpu)
	return row{
		Op: op, System: system, N: len(times), Median: median(ms), Min: slices.Min(ms), Max: slices.Max(ms), Ratio: median(ratios),
		CPU: median(cpuMS), CPURatio: median(cpuRatios),
	}
}

// series returns milliseconds, and the ratios to the base of the same round.
func series(times, base []spent, of func(spent) time.Duration) (ms, ratios []float64) {
	for i, t := range times {
		ms = append(ms, of(t).Seconds()*1e3)
		ratios = append(ratios, float64(of(t))/float64(max(of(base[i]), 1)))
	}
	return ms, ratios
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
			fmt.Fprintf(t, "operation\tsystem\tmedian ms\tleast\tmost\tratio\tCPU ms\tratio\t\n")
		}
		if op != x.Op {
			op = x.Op
			fmt.Fprintf(t, "\t\t\t\t\t\t\t\t\n")
		}
		fmt.Fprintf(t, "%s\t%s\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t\n", x.Op, x.System, x.Median, x.Min, x.Max, x.Ratio, x.CPU, x.CPURatio)
	}
	if len(r.Builds) > 0 {
		fmt.Fprintf(t, "\t\t\t\t\t\t\t\t\nmetadata of\topen TOCs\tkeep indexes\tmerge\twrite image\ttotal ms\tpeak RSS MB\t\t\n")
	}
	for _, b := range r.Builds {
		fmt.Fprintf(t, "%d files\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t\t\n", b.Files, b.Open, b.Keep, b.Merge, b.Write, b.Total, b.PeakMB)
	}
	return t.Flush()
}
