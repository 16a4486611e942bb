package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestReadTasks(t *testing.T) {
	const table = "image\tlayers\tready\ttask\tbigfile\n" +
		"debian\t1\tline:hello\t[\"/bin/echo\",\"hello\"]\t/usr/bin/perl\n" +
		"\n" +
		"nginx\t3\ttcp:80\t-\t/x\n" +
		"true\t1\texit\t-\t\n"
	got, err := readTasks(strings.NewReader(table))
	want := []task{
		{"debian", ready{Kind: "line", Text: "hello"}, []string{"/bin/echo", "hello"}},
		{"nginx", ready{Kind: "tcp", Port: 80}, nil},
		{"true", ready{Kind: "exit"}, nil},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("readTasks = %+v, %v; want %+v", got, err, want)
	}
	for i, s := range []string{"line:hello", "tcp:80", "exit"} {
		if got[i].Ready.String() != s {
			t.Errorf("%+v reads %q, want %q", got[i].Ready, got[i].Ready, s)
		}
	}
}

func TestReadTasksRefuses(t *testing.T) {
	const head = "image\tready\ttask\n"
	for name, table := range map[string]string{
		"nothing":         "",
		"no column":       "image\tready\n",
		"a short line":    head + "debian\texit\n",
		"no tag":          head + "../etc\texit\t-\n",
		"an unknown sign": head + "debian\tfile:/x\t-\n",
		"an empty line":   head + "debian\tline:\t-\n",
		"a port too high": head + "debian\ttcp:65536\t-\n",
		"no port":         head + "debian\ttcp:http\t-\n",
		"text after exit": head + "debian\texit:0\t-\n",
		"no JSON":         head + "debian\texit\techo hello\n",
		"no arguments":    head + "debian\texit\t[]\n",
		"an image twice":  head + "debian\texit\t-\ndebian\texit\t-\n",
		"a line too long": head + strings.Repeat("x", 1<<20) + "\n",
	} {
		if got, err := readTasks(strings.NewReader(table)); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestLoadTasks(t *testing.T) {
	file := filepath.Join(t.TempDir(), "images.tsv")
	if err := os.WriteFile(file, []byte("image\tready\ttask\na\texit\t-\nb\texit\t-\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := loadTasks(file, []string{"b"}); err != nil || len(got) != 1 || got[0].Image != "b" {
		t.Errorf("loadTasks of b = %+v, %v", got, err)
	}
	if got, err := loadTasks(file, nil); err != nil || len(got) != 2 {
		t.Errorf("loadTasks of all = %+v, %v", got, err)
	}
	if _, err := loadTasks(file, []string{"c"}); err == nil {
		t.Error("loadTasks of an image that is not there")
	}
}

func FuzzReadTasks(f *testing.F) {
	f.Add("image\tready\ttask\ndebian\tline:hello\t[\"x\"]\n")
	f.Add("image\tready\ttask\nnginx\ttcp:80\t-\n")
	f.Fuzz(func(t *testing.T, table string) {
		list, err := readTasks(strings.NewReader(table))
		if err != nil {
			return
		}
		for _, x := range list {
			if again, err := parseReady(x.Ready.String()); err != nil || again != x.Ready {
				t.Errorf("%q reads back as %+v, %v", x.Ready, again, err)
			}
		}
	})
}

func TestParseLink(t *testing.T) {
	for _, c := range []struct {
		text      string
		bits, rtt int64
	}{
		{"100M/20ms", 100e6, 20e6}, {"1.5G/0", 1.5e9, 0}, {"0/0", 0, 0}, {"0", 0, 0}, {"64k/1s", 64e3, 1e9},
	} {
		p, err := parseLink(c.text)
		if err != nil || p.link.BitsPerSecond != c.bits || int64(p.link.RTT) != c.rtt {
			t.Errorf("parseLink(%q) = %+v, %v", c.text, p, err)
		}
	}
	for _, s := range []string{"", "M", "-1", "100m", "100M/20", "100M/-1s", "NaN", "1e300G"} {
		if p, err := parseLink(s); err == nil {
			t.Errorf("parseLink(%q) = %+v", s, p.link)
		}
	}
	p, err := parseLink("100M/20ms")
	if err != nil || p.seconds(12.5e6) != 1 {
		t.Errorf("12.5 MB take %v s, %v", p.seconds(12.5e6), err)
	}
}

func TestFlags(t *testing.T) {
	c, err := flags([]string{"-short", "-rounds", "2", "-images", "a,b"})
	if err != nil || c.rounds != 2 || c.again != 1 || len(c.images) != 2 || len(c.systems) == 0 {
		t.Errorf("flags of a short run = %+v, %v", c, err)
	}
	for _, args := range [][]string{
		{"-systems", "docker"}, {"-links", "fast"}, {"-rounds", "0"}, {"-report"}, {"file"}, {"-links", ""}, {"-work", strings.Repeat("/x", 50)},
	} {
		if c, err := flags(args); err == nil {
			t.Errorf("flags(%q) = %+v", args, c)
		}
	}
}
