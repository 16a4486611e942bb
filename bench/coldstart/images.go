package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A task is a line of the table of images: what is started, and what shows that
// it is ready.
type task struct {
	Image string
	Ready ready
	Args  []string // instead of the image's command; nil for its own
}

// ready is a sign that a container is ready.
type ready struct {
	Kind string // "line", "tcp" or "exit"
	Text string // of a line, what it contains
	Port int    // of tcp
}

var imageName = regexp.MustCompile(`^[a-z0-9]+([._-][a-z0-9]+)*$`)

// readTasks reads a table: a line of column names, then a line an image, columns
// separated by tabs. Wanted are image, ready and task; others are not looked at.
//
//	ready   line:TEXT   a line of output contains TEXT
//	        tcp:PORT    PORT accepts on 127.0.0.1 in the container's network namespace
//	        exit        the program ends with status 0
//	task    a JSON array of strings instead of the image's command, or -
func readTasks(r io.Reader) ([]task, error) {
	lines := bufio.NewScanner(r)
	if !lines.Scan() {
		return nil, errors.Join(errors.New("an empty table"), lines.Err())
	}
	head := strings.Split(lines.Text(), "\t")
	image, sign, args := slices.Index(head, "image"), slices.Index(head, "ready"), slices.Index(head, "task")
	if image < 0 || sign < 0 || args < 0 {
		return nil, fmt.Errorf("columns %q: want image, ready and task among them", head)
	}
	var list []task
	for n := 2; lines.Scan(); n++ {
		if lines.Text() == "" {
			continue
		}
		f := strings.Split(lines.Text(), "\t")
		if len(f) <= max(image, sign, args) {
			return nil, fmt.Errorf("line %d: %d columns, want %d", n, len(f), len(head))
		}
		t, err := parseTask(f[image], f[sign], f[args])
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if slices.ContainsFunc(list, func(o task) bool { return o.Image == t.Image }) {
			return nil, fmt.Errorf("line %d: image %s is there twice", n, t.Image)
		}
		list = append(list, t)
	}
	return list, lines.Err()
}

func parseTask(image, sign, args string) (t task, err error) {
	if !imageName.MatchString(image) {
		return t, fmt.Errorf("image %q: want a tag that can be a repository's name", image)
	}
	t.Image = image
	if t.Ready, err = parseReady(sign); err != nil {
		return t, err
	}
	if args != "-" {
		if err := json.Unmarshal([]byte(args), &t.Args); err != nil {
			return t, fmt.Errorf("task %q: %w", args, err)
		}
		if len(t.Args) == 0 {
			return t, fmt.Errorf("task %q: want - for the image's own command", args)
		}
	}
	return t, nil
}

func parseReady(s string) (r ready, err error) {
	kind, value, _ := strings.Cut(s, ":")
	r.Kind = kind
	switch {
	case kind == "exit" && value == "":
		return r, nil
	case kind == "line" && value != "":
		r.Text = value
		return r, nil
	case kind == "tcp":
		if r.Port, err = strconv.Atoi(value); err == nil && r.Port > 0 && r.Port < 1<<16 {
			return r, nil
		}
	}
	return r, fmt.Errorf("ready %q: want line:TEXT, tcp:PORT or exit", s)
}

// loadTasks returns the tasks of the named images, or of all, in the table's order.
func loadTasks(file string, names []string) ([]task, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all, err := readTasks(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if len(names) == 0 {
		return all, nil
	}
	var list []task
	for _, name := range names {
		i := slices.IndexFunc(all, func(t task) bool { return t.Image == name })
		if i < 0 {
			return nil, fmt.Errorf("%s: no image %s", file, name)
		}
		list = append(list, all[i])
	}
	return list, nil
}

func (r ready) String() string {
	switch r.Kind {
	case "line":
		return "line:" + r.Text
	case "tcp":
		return "tcp:" + strconv.Itoa(r.Port)
	}
	return r.Kind
}
