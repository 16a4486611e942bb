package main

import (
	"fmt"
	"slices"
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

// plainText is printable for what may have several lines: an error names what an image calls its programs.
func plainText(s string) string {
	lines := strings.Split(strings.ReplaceAll(s, "\t", " "), "\n")
	for i := range lines {
		lines[i] = printable(lines[i])
	}
	return strings.Join(lines, "\n")
}

// plainJSON escapes what JSON leaves as it is, and a terminal may obey: DEL and
// the control characters of ISO 8859-1 (U+0080 to U+009F), in UTF-8. They can be in strings only.
func plainJSON(b []byte) []byte {
	if !slices.Contains(b, 0x7f) && !slices.Contains(b, 0xc2) {
		return b
	}
	var out []byte
	for i := 0; i < len(b); i++ {
		switch {
		case b[i] == 0x7f:
			out = append(out, `\u007f`...)
		case b[i] == 0xc2 && i+1 < len(b) && b[i+1] <= 0x9f:
			i++
			out = fmt.Appendf(out, `\u%04x`, b[i])
		default:
			out = append(out, b[i])
		}
	}
	return out
}

// table prints t or, with --json, the rows it was made of: one a line.
func (env *Env) table(t *table, rows any) error {
	if env.JSON {
		return env.jsonLines(rows)
	}
	_, err := env.Stdout.WriteString(t.String())
	return err
}
