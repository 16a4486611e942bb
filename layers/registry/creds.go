package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker-credential-helpers/client"
	"github.com/docker/docker-credential-helpers/credentials"
)

const (
	maxConfig     = 4 << 20          // bytes of a config.json
	helperTimeout = 20 * time.Second // for a credential helper to answer
)

// DockerCredentials finds credentials as docker does: in config.json, or with
// the helper programs it names. The files are read at each lookup, so a login
// takes effect at once.
type DockerCredentials struct {
	// Paths of config.json files, or of directories that have one; the first that
	// has credentials for a host counts. nil is DockerConfigPaths().
	Paths []string
	// Exec runs a credential helper: a program's name, one argument, stdin;
	// it returns stdout, also with an error. nil is os/exec. A process that
	// must not fork has another run it.
	Exec func(ctx context.Context, name, arg string, stdin []byte) ([]byte, error)
	Log  *slog.Logger // nil discards
}

// DockerConfigPaths are the usual places of docker's config.json for this user.
func DockerConfigPaths() []string {
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		return []string{filepath.Join(dir, "config.json")}
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return nil
	}
	return []string{filepath.Join(home, ".docker", "config.json")}
}

// configFile is what we read of config.json (docker/cli, cli/config/configfile).
type configFile struct {
	Auths map[string]struct {
		Auth          string `json:"auth"`
		Username      string `json:"username"`
		Password      string `json:"password"`
		IdentityToken string `json:"identitytoken"`
	} `json:"auths"`
	CredsStore  string            `json:"credsStore"`
	CredHelpers map[string]string `json:"credHelpers"`
}

// Lookup returns the credential for a host; see [Options].
func (c *DockerCredentials) Lookup(ctx context.Context, ask Ask) (Credential, error) {
	user, secret, err := c.lookup(ctx, ask.Host)
	if err != nil || secret == "" {
		return Credential{}, err
	}
	cred := Credential{User: user, Secret: secret, Source: "docker config"}
	if slices.ContainsFunc(ask.Refused, cred.Same) {
		return Credential{}, nil
	}
	return cred, nil
}

func (c *DockerCredentials) lookup(ctx context.Context, host string) (user, secret string, err error) {
	paths := c.Paths
	if paths == nil {
		paths = DockerConfigPaths()
	}
	for _, path := range paths {
		cfg, err := readDockerConfig(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", "", err
		}
		user, secret, err = c.in(ctx, cfg, host)
		if err != nil {
			return "", "", fmt.Errorf("%s: %w", path, err)
		}
		if secret != "" {
			return user, secret, nil
		}
	}
	return "", "", nil
}

func readDockerConfig(path string) (*configFile, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, "config.json")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > maxConfig {
		return nil, fmt.Errorf("%s: more than %d bytes", path, maxConfig)
	}
	cfg := new(configFile)
	if err := json.Unmarshal(raw, cfg); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return cfg, nil
}

// in looks a host up in one file: its own helper, the store, the file itself. A
// store that does not work is logged and passed over, since most images need
// no credentials; a helper somebody set for just this host is an error.
func (c *DockerCredentials) in(ctx context.Context, cfg *configFile, host string) (user, secret string, err error) {
	keys := hostKeys(host)
	for _, k := range keys {
		if name := cfg.CredHelpers[k]; name != "" {
			if user, secret, err = c.helper(ctx, name, k); err != nil || secret != "" {
				return user, secret, err
			}
		}
	}
	if cfg.CredsStore != "" {
		for _, k := range keys {
			if user, secret, err = c.helper(ctx, cfg.CredsStore, k); secret != "" {
				return user, secret, nil
			}
			if err != nil && c.Log != nil {
				c.Log.Warn("credential store does not work", "host", host, "err", err)
			}
		}
	}
	for _, k := range keys {
		for name, a := range cfg.Auths {
			if hostOf(name) != hostOf(k) {
				continue
			}
			switch {
			case a.IdentityToken != "":
				return "", a.IdentityToken, nil
			case a.Auth != "":
				return decodeAuth(a.Auth)
			case a.Password != "":
				return a.Username, a.Password, nil
			}
		}
	}
	return "", "", nil
}

// hostKeys are the names under which docker keeps the credentials of a host.
func hostKeys(host string) []string {
	switch host {
	case "docker.io", "registry-1.docker.io", "index.docker.io":
		return []string{"https://index.docker.io/v1/", "docker.io", "registry-1.docker.io"}
	}
	return []string{host}
}

// hostOf drops scheme and path of a key, as docker does (registry.ConvertToHostname).
func hostOf(key string) string {
	_, rest, ok := strings.Cut(key, "://")
	if !ok {
		rest = key
	}
	rest, _, _ = strings.Cut(rest, "/")
	return rest
}

// decodeAuth splits the base64 of "user:password".
func decodeAuth(s string) (user, secret string, err error) {
	raw, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return "", "", errors.New("auth is not base64")
	}
	user, secret, ok := strings.Cut(string(raw), ":")
	if !ok || user == "" {
		return "", "", errors.New("auth is not the base64 of user:password")
	}
	return user, strings.Trim(secret, "\x00"), nil // docker pads with NULs
}

// helper asks docker-credential-NAME about a server.
func (c *DockerCredentials) helper(ctx context.Context, name, server string) (user, secret string, err error) {
	if strings.ContainsAny(name, "/\x00") {
		return "", "", fmt.Errorf("credential helper %q: %w", name, fs.ErrInvalid)
	}
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	got, err := client.Get(func(args ...string) client.Program {
		return &program{ctx: ctx, exec: c.exec, name: "docker-credential-" + name, args: args}
	}, server)
	if credentials.IsErrCredentialsNotFound(err) {
		return "", "", nil
	}
	if err != nil {
		return "", "", errors.New(clip(err.Error()))
	}
	if got.Username == "<token>" {
		return "", got.Secret, nil // an identity token
	}
	return got.Username, got.Secret, nil
}

func (c *DockerCredentials) exec(ctx context.Context, name, arg string, stdin []byte) ([]byte, error) {
	if c.Exec != nil {
		return c.Exec(ctx, name, arg, stdin)
	}
	cmd := exec.CommandContext(ctx, name, arg)
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.WaitDelay = time.Second
	return cmd.Output()
}

// program is a credential helper as the client library wants it.
type program struct {
	ctx  context.Context // of one lookup
	exec func(ctx context.Context, name, arg string, stdin []byte) ([]byte, error)
	name string
	args []string
	in   io.Reader
}

var _ client.Program = (*program)(nil)

func (p *program) Input(in io.Reader) { p.in = in }

func (p *program) Output() ([]byte, error) {
	stdin, err := io.ReadAll(p.in)
	if err != nil {
		return nil, err
	}
	return p.exec(p.ctx, p.name, strings.Join(p.args, " "), stdin)
}
