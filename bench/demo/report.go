package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/snapfs/snapfs/internal/control"
)

// report is what was measured.
type report struct {
	demo   *demo
	detail control.ImageDetail
	rows   []row
	pull   time.Duration // of everything, before anything starts
	fetch  int64         // bytes fetched by the lazy starts together
}

// row is one command.
type row struct {
	command       string
	output        string
	cold          time.Duration // first output; includes the pull for the first row
	warm          time.Duration
	coldTotal     time.Duration
	bytes         int64 // over the link, until its end
	touched       int64 // files read that were not there
	afterDownload time.Duration
}

// measure starts the commands on a node that knows nothing, again on the same
// node, and on one that downloads the whole image first.
func (d *demo) measure(ctx context.Context, r *report, commands [][]string) error {
	step("starting snapd with an empty state directory")
	if err := d.start(ctx, "lazy"); err != nil {
		return err
	}
	for _, c := range commands {
		if err := d.lazyRow(ctx, r, c); err != nil {
			return err
		}
	}
	if err := d.inspect(ctx, r); err != nil {
		return err
	}
	step("the same on a second empty node, after a full download")
	if err := d.start(ctx, "eager"); err != nil {
		return err
	}
	begin := time.Now()
	if out, err := d.snapctl(ctx, "eager", "pull", "--wait", "--quiet", d.image).CombinedOutput(); err != nil {
		return fmt.Errorf("pull: %w: %s", err, out)
	}
	r.pull = time.Since(begin)
	for i, c := range commands {
		first, _, _, err := d.timed(ctx, "eager", c)
		if err != nil {
			return err
		}
		r.rows[i].afterDownload = first
	}
	return nil
}

func (d *demo) lazyRow(ctx context.Context, r *report, command []string) error {
	text := strings.Join(command, " ")
	step("snapctl run %s %s", d.image, text)
	before, err := d.stat(ctx, "lazy")
	if err != nil {
		return err
	}
	row := row{command: text}
	if row.cold, row.coldTotal, row.output, err = d.timed(ctx, "lazy", command); err != nil {
		return err
	}
	after, err := d.stat(ctx, "lazy")
	if err != nil {
		return err
	}
	row.bytes = after["registry.bytes"] - before["registry.bytes"]
	row.touched = after["objectfs.nodes"] - before["objectfs.nodes"]
	r.fetch += row.bytes
	if row.warm, _, _, err = d.timed(ctx, "lazy", command); err != nil {
		return err
	}
	r.rows = append(r.rows, row)
	return nil
}

func (d *demo) inspect(ctx context.Context, r *report) error {
	out, err := d.snapctl(ctx, "lazy", "inspect", d.image).Output()
	if err != nil {
		return fmt.Errorf("inspect: %w", err)
	}
	var details []control.ImageDetail
	if err := json.Unmarshal(out, &details); err != nil {
		return fmt.Errorf("inspect: %w", err)
	}
	if len(details) != 1 {
		return fmt.Errorf("inspect: %d images", len(details))
	}
	r.detail = details[0]
	return nil
}

func (r *report) print(w io.Writer) {
	total := r.detail.Size
	fmt.Fprintf(w, "\nImage     %s: %d layers, %d names, %s compressed\n", r.demo.image, r.detail.Layers, r.detail.Files, mb(total))
	if r.demo.link != nil {
		fmt.Fprintf(w, "Link      %.0f Mbit/s, %v round trip: %s take %s\n", bandwidth/1e6, roundTrip, mb(total), secs(time.Duration(float64(total)*8/bandwidth*1e9)))
	}
	fmt.Fprintf(w, "\n%-18s %14s %14s %16s %14s %12s\n", "", "first output", "first output", "first output,", "fetched by", "files")
	fmt.Fprintf(w, "%-18s %14s %14s %16s %14s %12s\n", "command", "cold", "warm", "download first", "the cold run", "touched")
	for i, row := range r.rows {
		first := "+ " + secs(row.afterDownload)
		if i == 0 {
			first = secs(r.pull + row.afterDownload)
		}
		fmt.Fprintf(w, "%-18s %14s %14s %16s %14s %12d\n", row.command, secs(row.cold), secs(row.warm), first, mb(row.bytes), row.touched)
	}
	fmt.Fprintf(w, "\nThe cold runs together fetched %s of %s (%.0f %%); fetching the rest in the background,\n"+
		"the default, was off, so that this can be seen. Each run was a new container; output:\n",
		mb(r.fetch), mb(total), 100*float64(r.fetch)/float64(max(total, 1)))
	for _, row := range r.rows {
		fmt.Fprintf(w, "  $ snapctl run %s %s\n  %s\n", r.demo.image, row.command, strings.ReplaceAll(row.output, "\n", "\n  "))
	}
}

func mb(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

func secs(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%.0f ms", float64(d)/1e6)
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}
