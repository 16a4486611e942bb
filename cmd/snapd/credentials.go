package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/credentials"
	"github.com/snapfs/snapfs/internal/supervisor"
	"github.com/snapfs/snapfs/layers/registry"
)

// CredentialsConfig says where the credentials of registries come from beside
// docker's config (registry.docker_configs) and, with containerd.cri, pull secrets.
type CredentialsConfig struct {
	// ProviderConfig is the kubelet's --image-credential-provider-config: a
	// CredentialProviderConfig, or a directory of them. Default none.
	ProviderConfig string `toml:"provider_config"`
	// ProviderBin is the kubelet's --image-credential-provider-bin-dir: the
	// directory of the plugins. Default none.
	ProviderBin string `toml:"provider_bin"`
	// ProviderTimeout bounds one run of a plugin. Default 20s, so that an answer
	// comes within the 30s that a container's read may stand still.
	ProviderTimeout Duration `toml:"provider_timeout"`
}

func (c *CredentialsConfig) validate() error {
	if (c.ProviderConfig == "") != (c.ProviderBin == "") {
		return errors.New("credentials: provider_config and provider_bin go together")
	}
	for key, p := range map[string]string{"provider_config": c.ProviderConfig, "provider_bin": c.ProviderBin} {
		if p != "" && !filepath.IsAbs(p) {
			return fmt.Errorf("credentials.%s = %q: want an absolute path", key, p)
		}
	}
	if d := time.Duration(c.ProviderTimeout); d <= 0 || d > time.Minute {
		return fmt.Errorf("credentials.provider_timeout = %q: want more than 0 and at most 1m", d)
	}
	return nil
}

// withoutCore sees to it that the kernel writes no core of this process, in whose
// memory passwords are, and lets nobody but root look into it. A program that it
// executes begins anew (prctl(2), PR_SET_DUMPABLE).
func withoutCore() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }

// pullsMemory is the name under which the supervisor keeps what came with pulls.
const pullsMemory = "credentials"

// A state that did not fit would leave the one before it there.
const _ = uint(supervisor.MaxMemory - credentials.MaxState)

// openCredentials builds the chain of credentials. What a worker before this one
// has learnt from pulls is there again.
func (d *daemon) openCredentials(ctx context.Context) (*credentials.Chain, error) {
	d.pulls = &credentials.Pulls{Log: d.log, Keep: func(state []byte) error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second) // a pull may end after the worker was told to
		defer cancel()
		return d.w.Remember(ctx, pullsMemory, state)
	}}
	if err := d.pulls.Restore(d.w.Recall(pullsMemory)); err != nil {
		d.log.Warn("credentials of pulls are lost", "err", err)
	}
	docker := registry.DockerCredentials{Paths: d.c.Registry.DockerConfigs, Exec: d.w.Output, Log: d.log}
	chain := &credentials.Chain{
		ByImage: []credentials.Source{d.pulls},
		ByHost:  []credentials.Source{&credentials.Docker{Lookup: docker.Lookup}},
	}
	c := d.c.Credentials
	if c.ProviderConfig == "" {
		return chain, nil
	}
	var err error
	d.providers, err = credentials.OpenProviders(credentials.ProviderOptions{
		Config: c.ProviderConfig, Bin: c.ProviderBin, Timeout: time.Duration(c.ProviderTimeout), Log: d.log,
		Exec: func(ctx context.Context, p credentials.Program) ([]byte, error) {
			return d.w.RunProgram(ctx, supervisor.Program{Name: p.Path, Args: p.Args, Env: p.Env, Stdin: p.Stdin, Most: p.Most})
		},
	})
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	chain.ByImage = append(chain.ByImage, d.providers)
	return chain, nil
}
