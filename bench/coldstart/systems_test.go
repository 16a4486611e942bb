package main

import (
	"slices"
	"strings"
	"testing"
)

func TestConversion(t *testing.T) {
	line := task{"debian", ready{Kind: "line", Text: "hello"}, []string{"/bin/echo", "hello"}}
	port := task{"nginx", ready{Kind: "tcp", Port: 80}, nil}
	for _, c := range []struct {
		form string
		task task
		want string
	}{
		{formEsgzOpt, line, `ctr-remote -a {socket} images optimize --oci --estargz-compression-level 6 --period 20 --wait-on-line hello --args ["/bin/echo","hello"] {from} {to}`},
		{formEsgzOpt, port, `ctr-remote -a {socket} images optimize --oci --estargz-compression-level 6 --period 10 {from} {to}`},
		{formSoci, port, `soci --address {socket} --root {work}/soci convert {from} {to}`},
	} {
		got, err := conversion(c.form, c.task)
		if text := strings.Join(got, " "); text != c.want || err != nil {
			t.Errorf("conversion(%s, %s) = %s, %v; want %s", c.form, c.task.Image, text, err, c.want)
		}
	}
	if got, err := conversion(formPlain, port); err == nil {
		t.Errorf("conversion(plain) = %s", got)
	}
}

func TestExpand(t *testing.T) {
	words := []string{"--record", "--ready", "{ready}", "{ref}"}
	for _, c := range []struct {
		ready ready
		want  string
	}{
		{ready{Kind: "line", Text: "1.0 (ok)"}, `--record --ready line=1\.0 \(ok\) r`},
		{ready{Kind: "tcp", Port: 80}, "--record --ready port=80 r"},
		{ready{Kind: "exit"}, "--record r"},
	} {
		if got := strings.Join(expand(words, "r", task{Ready: c.ready}), " "); got != c.want {
			t.Errorf("%v: %s, want %s", c.ready, got, c.want)
		}
	}
}

// TestForms: of every form that a system starts there is a way to make it.
func TestForms(t *testing.T) {
	for _, s := range systems {
		if s.form != formPlain && publications[s.form] == nil && conversions[s.form] == nil {
			t.Errorf("%s: nothing makes %s", s.Name, s.form)
		}
	}
}

func TestChooseSystems(t *testing.T) {
	list, err := chooseSystems([]string{"overlayfs", "snapfs-index"})
	if err != nil || len(list) != 2 || list[0].Name != "snapfs-index" {
		t.Errorf("chooseSystems = %v, %v; want the table's order", list, err)
	}
	if list, err = chooseSystems(nil); len(list) != len(systems) || err != nil {
		t.Errorf("chooseSystems of none = %d, %v", len(list), err)
	}
	if _, err := chooseSystems([]string{"overlayfs", "docker"}); err == nil {
		t.Error("chooseSystems knows docker")
	}
}

// TestComparisons: they compare systems that there are.
func TestComparisons(t *testing.T) {
	names := append(systemNames(), "")
	for _, c := range comparisons {
		for name := range strings.SplitSeq(c.system+"+"+c.base, "+") {
			if !slices.Contains(names, name) {
				t.Errorf("%s: no %s", c.what, name)
			}
		}
	}
}

func TestMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	for _, s := range systems {
		err := s.missing(t.Context())
		if want := len(s.needs) > 0; (err != nil) != want {
			t.Errorf("%s: %v", s.Name, err)
		}
	}
}
