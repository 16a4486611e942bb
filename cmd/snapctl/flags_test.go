package main

import (
	"slices"
	"strings"
	"testing"
)

func TestFlags(t *testing.T) {
	type result struct {
		i, tty, rm bool
		e          []string
		w          string
		rest       []string
	}
	for name, test := range map[string]struct {
		args []string
		stop bool
		want result
		err  string
	}{
		"none":                {nil, true, result{}, ""},
		"cluster":             {[]string{"-it", "img", "sh"}, true, result{i: true, tty: true, rest: []string{"img", "sh"}}, ""},
		"long":                {[]string{"--rm", "--workdir=/x", "img"}, true, result{rm: true, w: "/x", rest: []string{"img"}}, ""},
		"value apart":         {[]string{"--workdir", "/x", "-e", "A=1", "img"}, true, result{w: "/x", e: []string{"A=1"}, rest: []string{"img"}}, ""},
		"value glued":         {[]string{"-eA=1", "-w=/x", "img"}, true, result{w: "/x", e: []string{"A=1"}, rest: []string{"img"}}, ""},
		"cluster and value":   {[]string{"-iteA", "img"}, true, result{i: true, tty: true, e: []string{"A"}, rest: []string{"img"}}, ""},
		"repeated":            {[]string{"-e", "A", "--env=B", "-eC", "img"}, true, result{e: []string{"A", "B", "C"}, rest: []string{"img"}}, ""},
		"switched off":        {[]string{"--rm", "--rm=false", "img"}, true, result{rest: []string{"img"}}, ""},
		"short switched off":  {[]string{"-i=false", "img"}, true, result{rest: []string{"img"}}, ""},
		"command's own flags": {[]string{"-i", "img", "ls", "-t", "--rm"}, true, result{i: true, rest: []string{"img", "ls", "-t", "--rm"}}, ""},
		"interspersed":        {[]string{"a", "-i", "b", "--rm"}, false, result{i: true, rm: true, rest: []string{"a", "b"}}, ""},
		"end of options":      {[]string{"-i", "--", "-t"}, false, result{i: true, rest: []string{"-t"}}, ""},
		"dash is an argument": {[]string{"-", "x"}, false, result{rest: []string{"-", "x"}}, ""},
		"empty value":         {[]string{"--workdir=", "img"}, true, result{rest: []string{"img"}}, ""},
		"unknown":             {[]string{"--rmm", "img"}, true, result{}, "unknown option --rmm"},
		"unknown short":       {[]string{"-ix", "img"}, true, result{}, "unknown option -x"},
		"value missing":       {[]string{"--workdir"}, true, result{}, "needs a value"},
		"short value missing": {[]string{"-w"}, true, result{}, "needs a value"},
		"not a boolean":       {[]string{"--rm=maybe"}, true, result{}, "--rm: \"maybe\""},
	} {
		t.Run(name, func(t *testing.T) {
			var got result
			f := &flagSet{}
			f.flag(&got.i, "i,interactive", "x")
			f.flag(&got.tty, "t,tty", "x")
			f.flag(&got.rm, "rm", "x")
			f.list(&got.e, "e,env", "V", "x")
			f.text(&got.w, "w,workdir", "DIR", "x")
			var err error
			got.rest, err = f.parseArgs(test.args, !test.stop)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("error %v, want %q", err, test.err)
				}
				return
			}
			w := test.want
			if err != nil || got.i != w.i || got.tty != w.tty || got.rm != w.rm || !slices.Equal(got.e, w.e) || got.w != w.w || !slices.Equal(got.rest, w.rest) {
				t.Errorf("got %+v, %v, want %+v", got, err, w)
			}
		})
	}
}

// Every verb explains itself, with an example, on lines that fit.
func TestHelp(t *testing.T) {
	for _, g := range groups() {
		for _, v := range g.verbs {
			env, out, errs := newEnv(t, "")
			if status := env.main([]string{v.name, "--help"}); status != 0 {
				t.Errorf("%s --help: exit status %d: %s", v.name, status, errs())
			}
			text := out()
			if !strings.HasPrefix(text, "Usage: snapctl "+v.name) || !strings.Contains(text, "\nExample:\n  snapctl ") {
				t.Errorf("%s --help:\n%s", v.name, text)
			}
			for line := range strings.Lines(text) {
				if len(line) > 140 {
					t.Errorf("%s --help: a line of %d characters: %s", v.name, len(line), line)
				}
			}
		}
	}
	env, out, _ := newEnv(t, "")
	if env.main([]string{"run", "--help"}); !strings.Contains(out(), "\nOptions:\n") || !strings.Contains(out(), "-m, --memory SIZE ") || strings.Contains(out(), "--host ") {
		t.Errorf("run --help does not list run's own options:\n%s", out())
	}
	for _, args := range [][]string{{"--help"}, {"-h"}, {"help"}} {
		env, out, _ := newEnv(t, "")
		if status := env.main(args); status != 0 || !strings.Contains(out(), "Global options:") {
			t.Errorf("snapctl %s: exit status %d", args, status)
		}
	}
}

func TestUsageErrors(t *testing.T) {
	for _, test := range []struct {
		args   string
		status int
		text   string
	}{
		{"", 2, "Usage: snapctl"},
		{"frobnicate", 2, `unknown command "frobnicate"`},
		{"--nope ps", 2, "unknown option --nope"},
		{"--host tcp://x ps", 2, "want unix://"},
		{"ps extra", 2, "1 arguments given"},
		{"rm", 2, "usage: snapctl rm"},
		{"run", 125, "usage: snapctl run"},
		{"run --nope x", 125, "unknown option --nope"},
		{"run --network mynet x", 125, "unknown network"},
		{"run --network container: x", 125, "unknown network"},
		{"run -p 80/sctp x", 125, "sctp is not supported"},
		{"run -p 70000:80 x", 125, "1 to 65535"},
		{"run --ip fe80 x", 125, "--ip"},
		{"run --expose 1:2 x", 125, "--expose"},
		{"run --device fuse x", 125, "path of a device"},
		{"run --device vendor.com/class= x", 125, "VENDOR/CLASS=NAME"},
		{"run --gpus none x", 125, "want all, a number"},
		{"run --gpus device=0,,1 x", 125, "device=NAME"},
		{"run --gpus 65 x", 125, "up to 64"},
		{"run --device /dev/fuse:/x:rx x", 125, "r, w and m"},
		{"run --device /a:/b:r:w x", 125, "want PATH"},
		{"run --ipc other x", 125, "container:NAME"},
		{"run --uts container:x x", 125, "private or host"},
		{"run --cpu-shares 1 x", 125, "2 to 262144"},
		{"run --oom-score-adj 1001 x", 125, "-1000 to 1000"},
		{"run --blkio-weight 5 x", 125, "10 to 1000"},
		{"run --sysctl net.x x", 125, "NAME=VALUE"},
		{"run --annotation =x x", 125, "NAME=VALUE"},
		{"run --shm-size 0 x", 125, "a size"},
		{"run --label-file /nonexistent x", 125, "/nonexistent"},
		{"port x 80:80", 2, "PORT"},
		{"run --ready prot=80 x", 125, `--ready: "prot=80": want line=REGEX, port=NUMBER or file=PATH`},
		{"run --ready port=65536 x", 125, "--ready: \"port=65536\": want a port from 1 to 65535"},
		{"run --ready file=run/x x", 125, "--ready: \"file=run/x\": want an absolute path"},
		{"run --ready line=( x", 125, "--ready: \"line=(\": error parsing regexp"},
		{"create --ready= x", 125, "--ready: want line=REGEX"},
		{"run --health-interval 1ms x", 125, "--health-interval 1ms: want at least 100ms"},
		{"run --log-driver syslog x", 125, `--log-driver: "syslog": want json-file or none`},
		{"run --log-opt compress=true x", 125, `--log-opt: "compress=true": unknown option`},
		{"run --log-opt max-size=big x", 125, `--log-opt: "big": want a size`},
		{"run --log-opt max-size=0 x", 125, "--log-opt: \"max-size=0\": want a size"},
		{"run --log-opt max-file=0 x", 125, "--log-opt: \"max-file=0\": want a number of files from 1 to 100"},
		{"run --health-timeout soon x", 125, "--health-timeout: \"soon\": want a time such as 10s"},
		{"run --health-retries -1 x", 125, "--health-retries -1: want no less than 0"},
		{"run --env-file /dev/zero x", 125, "--env-file: /dev/zero: larger than"},
		{"run --label-file /dev/zero x", 125, "--label-file: /dev/zero: larger than"},
		{"run --security-opt seccomp=/dev/zero x", 125, "--security-opt: seccomp profile: /dev/zero: larger than"},
		{"run --label =x x", 125, `--label: "=x": the name is empty`},
		{"run --pids-limit 1.5 x", 125, `--pids-limit: "1.5": want a number`},
		{"run --pids-limit -2 x", 125, `--pids-limit: "-2": want a number`},
		{"run --pids-limit 99999999999999999999 x", 125, "want a number"},
		{"exec box", 125, "usage: snapctl exec"},
		{"daemon dance", 2, "want start, stop, restart or status"},
		{"completion tcsh", 2, "want bash, zsh or fish"},
		{"help frobnicate", 2, "unknown command"},
	} {
		env, _, errs := newEnv(t, "")
		status := env.main(strings.Fields(test.args))
		if text := errs(); status != test.status || !strings.Contains(text, test.text) || test.args != "" && strings.Count(text, "\n") != 1 {
			t.Errorf("snapctl %s: exit status %d, %q; want %d and one line with %q", test.args, status, text, test.status, test.text)
		}
	}
}
