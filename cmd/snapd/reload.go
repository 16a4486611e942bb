package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
)

// reloads gets a value for every SIGHUP that finds a configuration which the
// running supervisor can go on with: the worker, when it is replaced, reads it.
func reloads(ctx context.Context, c Config, log *slog.Logger) (reload <-chan struct{}, end func()) {
	ctx, cancel := context.WithCancel(ctx)
	signals, out := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(signals, syscall.SIGHUP)
	var relay sync.WaitGroup
	relay.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-signals:
			}
			if err := c.reloadable(os.Args[1:]); err != nil {
				log.Error("the configuration is not read again", "err", err)
				continue
			}
			select {
			case <-ctx.Done():
			case out <- struct{}{}:
			}
		}
	})
	return out, func() {
		cancel()
		signal.Stop(signals)
		relay.Wait()
	}
}

// reloadable says why the configuration that args lead to now cannot take the
// place of c without a restart.
func (c *Config) reloadable(args []string) error {
	next, _, err := parse(args, io.Discard, io.Discard)
	if err != nil {
		return err
	}
	for key, differs := range map[string]bool{
		"root": next.Root != c.Root, "run": next.Run != c.Run, "runner": next.Runner != c.Runner,
		"containerd.socket": !slices.Equal(next.sockets(), c.sockets()),
	} {
		if differs {
			return fmt.Errorf("%s has changed: that takes a restart", key)
		}
	}
	return nil
}
