package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// size is a number of bytes with three digits and a decimal unit, as docker prints them.
func size(n int64) string {
	units := []string{"B", "kB", "MB", "GB", "TB", "PB"}
	f, i := float64(n), 0
	for f >= 999.5 && i < len(units)-1 {
		f, i = f/1000, i+1
	}
	switch {
	case i == 0:
		return fmt.Sprintf("%dB", n)
	case f < 9.995:
		return fmt.Sprintf("%.2f%s", f, units[i])
	case f < 99.95:
		return fmt.Sprintf("%.1f%s", f, units[i])
	}
	return fmt.Sprintf("%.0f%s", f, units[i])
}

// duration is roughly how long d is, in docker's words.
func duration(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < time.Second:
		return "Less than a second"
	case d < 2*time.Second:
		return "1 second"
	case d < time.Minute:
		return fmt.Sprintf("%d seconds", d/time.Second)
	case d < 2*time.Minute:
		return "About a minute"
	case d < time.Hour:
		return fmt.Sprintf("%d minutes", d/time.Minute)
	case d < 2*time.Hour:
		return "About an hour"
	case d < 2*day:
		return fmt.Sprintf("%d hours", d/time.Hour)
	case d < 14*day:
		return fmt.Sprintf("%d days", d/day)
	case d < 60*day:
		return fmt.Sprintf("%d weeks", d/(7*day))
	case d < 730*day:
		return fmt.Sprintf("%d months", d/(30*day))
	}
	return fmt.Sprintf("%d years", d/(365*day))
}

func ago(t, now time.Time) string {
	if t.IsZero() || t.Unix() == 0 {
		return "N/A"
	}
	return duration(max(now.Sub(t), 0)) + " ago"
}

// shorten cuts s to n characters, the last of them an ellipsis.
func shorten(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

// repository splits a reference as docker shows it: the domain and folder of
// Docker Hub's own images are not mentioned.
func repository(ref string) (repo, tag string) {
	repo, digest, _ := strings.Cut(ref, "@")
	tag = "<none>"
	if i := strings.LastIndexByte(repo, ':'); i > strings.LastIndexByte(repo, '/') {
		repo, tag = repo[:i], repo[i+1:]
	} else if digest != "" {
		tag = "@" + shortID(digest)
	}
	for _, prefix := range []string{"docker.io/library/", "docker.io/"} {
		if rest, ok := strings.CutPrefix(repo, prefix); ok {
			return rest, tag
		}
	}
	return repo, tag
}

// jsonLines prints each element of the slice rows on a line of its own.
func (env *Env) jsonLines(rows any) error {
	b, err := json.Marshal(rows)
	if err != nil {
		return err
	}
	var list []json.RawMessage
	if err := json.Unmarshal(b, &list); err != nil {
		return err
	}
	for _, row := range list {
		if _, err := env.Stdout.Write(append(plainJSON(row), '\n')); err != nil {
			return err
		}
	}
	return nil
}
