// Command peers sees to it that the programs of others which tests and
// benchmarks want are in the cache, and prints where.
//
//	go run ./bench/peers [NAME…]
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"

	"github.com/snapfs/snapfs/internal/peers"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := find(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

// find finds those named, or all.
func find(ctx context.Context, names []string) error {
	cache, err := peers.Cache()
	if err != nil {
		return err
	}
	for _, p := range peers.All {
		if len(names) > 0 && !slices.Contains(names, p.Name) && !slices.Contains(names, p.String()) {
			continue
		}
		if _, err := exec.LookPath("gcc"); err != nil && p.Cgo {
			fmt.Fprintf(os.Stderr, "peers: no %s: building it wants gcc\n", p)
			continue
		}
		dir, err := p.Find(ctx, cache, os.Stderr)
		if err != nil {
			return err
		}
		fmt.Println(dir)
	}
	return nil
}
