package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// createFlags registers the options that make a container. The arguments that
// remain are IMAGE [COMMAND] [ARG...], for created.
func createFlags(f *flagSet, a *control.CreateArgs) {
	f.stop = true
	a.Pull = "missing"
	f.list(&a.CapAdd, "cap-add", "NAME", "add a capability (ALL for all)")
	f.list(&a.CapDrop, "cap-drop", "NAME", "drop a capability (ALL for all)")
	f.add("cpus", "N", "limit to N CPUs, such as 1.5", func(s string) (err error) { a.NanoCPUs, err = parseCPUs(s); return err })
	f.add("entrypoint", "PROGRAM", "run PROGRAM instead of the image's entrypoint (\"\" for none)", func(s string) error { a.Entrypoint = []string{s}; return nil })
	f.add("e,env", "NAME[=VALUE]", "set a variable, or pass this one on", func(s string) error {
		kv, ok, err := parseEnv(s, os.LookupEnv)
		if ok {
			a.Env = append(a.Env, kv)
		}
		return err
	})
	f.add("env-file", "FILE", "set the variables in FILE", func(s string) error {
		env, err := readEnvFile(s)
		a.Env = append(env, a.Env...) // -e wins, wherever it stands
		return err
	})
	healthFlags(f, a)
	f.text(&a.Hostname, "h,hostname", "NAME", "the container's host name (default its short ID)")
	f.flag(&a.Init, "init", "run a tiny first process that reaps zombies and forwards signals")
	f.flag(&a.OpenStdin, "i,interactive", "keep standard input open")
	f.add("l,label", "NAME[=VALUE]", "attach a label", func(s string) error {
		name, value, _ := strings.Cut(s, "=")
		if name == "" {
			return fmt.Errorf("%q: the name is empty", s)
		}
		put(&a.Labels, name, value)
		return nil
	})
	f.add("log-driver", "DRIVER", "keep the output for snapctl logs: json-file (default), or none", func(s string) error {
		a.LogDriver = s
		if s != "json-file" && s != "none" {
			return fmt.Errorf("%q: want json-file or none", s)
		}
		return nil
	})
	f.add("log-opt", "NAME=VALUE", "max-size=10m: begin another file then; max-file=3: keep so many of them (default 1)", func(s string) error { return parseLogOpt(s, a) })
	f.add("m,memory", "SIZE", "limit memory, such as 512m", func(s string) (err error) { a.Memory, err = parseBytes(s); return err })
	f.add("mount", "SPEC", "mount type=bind,source=DIR,target=DIR[,readonly] or type=tmpfs,target=DIR[,tmpfs-size=SIZE]", func(s string) error {
		m, err := parseMount(s)
		a.Mounts = append(a.Mounts, m)
		return err
	})
	f.text(&a.Name, "name", "NAME", "name the container (default made up)")
	networkFlags(f, a)
	hostFlags(f, a)
	f.add("pids-limit", "N", "limit the number of processes (-1 for no limit)", func(s string) error {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < -1 {
			return fmt.Errorf("%q: want a number of processes, or -1 for no limit", s)
		}
		a.PidsLimit = max(n, 0)
		return nil
	})
	f.text(&a.Platform, "platform", "OS/ARCH", "choose this platform of the image")
	f.add("pull", "POLICY", "ask the registry for the image: always, missing (default) or never", func(s string) error {
		a.Pull = s
		if !slices.Contains([]string{"always", "missing", "never"}, s) {
			return fmt.Errorf("%q: want always, missing or never", s)
		}
		return nil
	})
	f.flag(&a.Record, "record", "let the daemon serve all files, and record what the start reads for the image's boot profile")
	f.flag(&a.ReadOnly, "read-only", "make the root file system read-only")
	f.add("ready", "WHAT", "it is ready when: line=REGEX of its output, port=NUMBER listened at, or file=PATH exists", func(s string) error {
		a.Ready = s
		if s == "" {
			return errors.New("want line=REGEX, port=NUMBER or file=PATH, such as port=8080")
		}
		return monitor.ParseReady(s)
	})
	f.flag(&a.Remove, "rm", "remove the container when it ends")
	f.add("security-opt", "OPT", "seccomp=unconfined|FILE or no-new-privileges", func(s string) error {
		opt, err := securityOpt(s)
		a.SecurityOpt = append(a.SecurityOpt, opt)
		return err
	})
	f.text(&a.StopSignal, "stop-signal", "SIGNAL", "signal that asks the container to end")
	f.list(&a.Tmpfs, "tmpfs", "DIR[:OPTIONS]", "mount a tmpfs")
	f.flag(&a.TTY, "t,tty", "give the container a terminal")
	f.add("ulimit", "NAME=SOFT[:HARD]", "set a resource limit", func(s string) error {
		u, err := parseUlimit(s)
		a.Ulimits = append(a.Ulimits, u)
		return err
	})
	f.text(&a.User, "u,user", "USER[:GROUP]", "run as this user, by name or number")
	f.add("v,volume", "SOURCE:TARGET[:OPTS]", "show a directory of this machine in the container; :idmap shifts owners, see --userns", func(s string) error {
		m, err := parseVolume(s)
		a.Mounts = append(a.Mounts, m)
		return err
	})
	f.text(&a.Workdir, "w,workdir", "DIR", "start in DIR")
}

// healthFlags registers Docker's options of a health check.
func healthFlags(f *flagSet, a *control.CreateArgs) {
	h := &a.Health
	f.add("health-cmd", "SCRIPT", "check by this shell script that it is healthy, instead of the image's way", func(s string) error {
		if s == "" {
			return errors.New("the script is empty; --no-healthcheck turns the image's check off")
		}
		h.Test = []string{"CMD-SHELL", s}
		return nil
	})
	for _, d := range []struct {
		p          *time.Duration
		name, help string
	}{
		{&h.Interval, "health-interval", "time between two checks (default 30s)"},
		{&h.StartInterval, "health-start-interval", "the same during the start period (default 5s)"},
		{&h.StartPeriod, "health-start-period", "time to start in, when failures do not count (default 0s)"},
		{&h.Timeout, "health-timeout", "time that a check may take (default 30s)"},
	} {
		f.add(d.name, "TIME", d.help, func(s string) (err error) {
			if *d.p, err = time.ParseDuration(s); err != nil {
				err = fmt.Errorf("%q: want a time such as 10s", s)
			}
			return err
		})
	}
	f.add("health-retries", "N", "failures in a row that make it unhealthy (default 3)", func(s string) (err error) {
		if h.Retries, err = strconv.Atoi(s); err != nil {
			err = fmt.Errorf("%q: want a number", s)
		}
		return err
	})
	f.flag(&a.NoHealthcheck, "no-healthcheck", "do not run the image's health check")
}

// created completes a with the arguments that the options left.
func created(env *Env, a *control.CreateArgs, rest []string) error {
	a.Image, a.Args = rest[0], rest[1:]
	if err := monitor.CheckHealth(a.Health); err != nil {
		return usageErrorf("--%v", err)
	}
	var err error
	if a.ID, err = randomID(); err != nil {
		return err
	}
	if a.TTY && terminal(env.Stdout) {
		if w, h, err := term.GetSize(int(env.Stdout.Fd())); err == nil {
			a.Height, a.Width = uint16(h), uint16(w)
		}
	}
	return nil
}

// randomID returns 64 hex digits. The kernel is asked directly: package
// crypto/rand brings 0.3 ms of self-tests along.
func randomID() (string, error) {
	b := make([]byte, 32)
	if _, err := unix.Getrandom(b, 0); err != nil {
		return "", os.NewSyscallError("getrandom", err)
	}
	return hex.EncodeToString(b), nil
}

// shortID is an ID as tables show it.
func shortID(id string) string {
	_, digits, ok := strings.Cut(id, ":")
	if !ok {
		digits = id
	}
	return digits[:min(12, len(digits))]
}
