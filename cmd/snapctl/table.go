package main

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// A table is text in columns, the last of which is not padded.
type table struct {
	rows [][]string
}

func newTable(heads ...string) *table { return &table{rows: [][]string{heads}} }

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

// String lays the columns out three blanks apart.
func (t *table) String() string {
	widths := make([]int, len(t.rows[0]))
	for _, r := range t.rows {
		for i := range r {
			r[i] = printable(r[i])
			widths[i] = max(widths[i], utf8.RuneCountInString(r[i]))
		}
	}
	var b strings.Builder
	for _, r := range t.rows {
		line := ""
		for i, cell := range r {
			line += cell
			if i < len(r)-1 {
				line += strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+3)
			}
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	return b.String()
}

// printable keeps names and commands of images from speaking to the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// table prints t or, with --json, the rows it was made of: one a line.
func (env *Env) table(t *table, rows any) error {
	if env.JSON {
		return env.jsonLines(rows)
	}
	_, err := env.Stdout.WriteString(t.String())
	return err
}
