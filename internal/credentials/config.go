package credentials

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"sigs.k8s.io/yaml"
)

// Bounds of a CredentialProviderConfig.
const (
	maxProviderConfig = 1 << 20 // bytes of all files together
	maxProviders      = 64
	maxPatterns       = 1024 // of one provider
)

// providerConfig is kubelet's CredentialProviderConfig (kubelet.config.k8s.io/v1).
type providerConfig struct {
	Kind       string         `json:"kind"`
	APIVersion string         `json:"apiVersion"`
	Providers  []providerSpec `json:"providers"`
}

type providerSpec struct {
	Name                 string   `json:"name"`
	MatchImages          []string `json:"matchImages"`
	DefaultCacheDuration *string  `json:"defaultCacheDuration"`
	APIVersion           string   `json:"apiVersion"`
	Args                 []string `json:"args"`
	Env                  []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"env"`
	TokenAttributes *struct {
		ServiceAccountTokenAudience          string   `json:"serviceAccountTokenAudience"`
		CacheType                            string   `json:"cacheType"`
		RequireServiceAccount                *bool    `json:"requireServiceAccount"`
		RequiredServiceAccountAnnotationKeys []string `json:"requiredServiceAccountAnnotationKeys"`
		OptionalServiceAccountAnnotationKeys []string `json:"optionalServiceAccountAnnotationKeys"`
	} `json:"tokenAttributes"`
}

const pluginGroup = "credentialprovider.kubelet.k8s.io/"

// versions of kubelet's APIs: the same ones for the configuration and for plugins.
var versions = []string{"v1", "v1beta1", "v1alpha1"}

func known(group, apiVersion string) bool {
	v, ok := strings.CutPrefix(apiVersion, group)
	return ok && slices.Contains(versions, v)
}

// readProviders reads the file, or all files of the folder, at path.
func readProviders(path string, log *slog.Logger) ([]*provider, error) {
	files := []string{path}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		entries, err := os.ReadDir(path)
		if err != nil {
			return nil, err
		}
		files = nil
		for _, e := range entries { // sorted by name, as kubelet merges them
			if ext := filepath.Ext(e.Name()); !e.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, ext) {
				files = append(files, filepath.Join(path, e.Name()))
			}
		}
	}
	var all []*provider
	left := int64(maxProviderConfig)
	for _, name := range files {
		raw, err := readAtMost(name, left)
		if err != nil {
			return nil, err
		}
		left -= int64(len(raw))
		list, warning, err := parseProviders(raw)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if warning != nil {
			log.Warn("credential provider configuration has what we do not know", "file", name, "err", warning)
		}
		all = append(all, list...)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: no credential provider", path)
	}
	return all, checkProviders(path, all)
}

func checkProviders(path string, all []*provider) error {
	if len(all) > maxProviders {
		return errTooMuch(path+": providers", len(all), maxProviders)
	}
	seen := make(map[string]bool)
	for _, p := range all {
		if seen[p.name] {
			return fmt.Errorf("%s: two providers %q", path, p.name)
		}
		seen[p.name] = true
	}
	return nil
}

func readAtMost(name string, most int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(raw)) > most {
		err = fmt.Errorf("%s: credential provider configuration of more than %d bytes", name, maxProviderConfig)
	}
	return raw, err
}

// parseProviders reads a CredentialProviderConfig and checks what kubelet checks.
// What a newer kubelet may know and we do not is a warning.
func parseProviders(raw []byte) (list []*provider, warning, err error) {
	var c providerConfig
	if warning = yaml.UnmarshalStrict(raw, &c); warning != nil {
		c = providerConfig{}
		if err := yaml.Unmarshal(raw, &c); err != nil {
			return nil, nil, errors.New(clip(err.Error()))
		}
		warning = errors.New(clip(warning.Error()))
	}
	if c.Kind != "CredentialProviderConfig" || !known("kubelet.config.k8s.io/", c.APIVersion) {
		return nil, nil, fmt.Errorf("kind %q of %q: want CredentialProviderConfig of kubelet.config.k8s.io/v1", clip(c.Kind), clip(c.APIVersion))
	}
	if len(c.Providers) > maxProviders {
		return nil, nil, errTooMuch("providers", len(c.Providers), maxProviders)
	}
	for _, s := range c.Providers {
		p, err := s.provider()
		if err != nil {
			return nil, nil, fmt.Errorf("provider %q: %w", clip(s.Name), err)
		}
		list = append(list, p)
	}
	return list, warning, nil
}

func (s *providerSpec) provider() (*provider, error) {
	switch {
	case s.Name == "" || s.Name == "." || s.Name == ".." || strings.ContainsAny(s.Name, "/\x00") || strings.ContainsFunc(s.Name, unicode.IsSpace):
		return nil, errors.New("name: want that of a program in the plugins' directory")
	case len(s.MatchImages) == 0:
		return nil, errors.New("matchImages: none")
	case len(s.MatchImages) > maxPatterns:
		return nil, errTooMuch("matchImages", len(s.MatchImages), maxPatterns)
	case !known(pluginGroup, s.APIVersion):
		return nil, fmt.Errorf("apiVersion %q: want %sv1", clip(s.APIVersion), pluginGroup)
	case s.DefaultCacheDuration == nil:
		return nil, errors.New("defaultCacheDuration is not set")
	}
	p := &provider{name: s.Name, apiVersion: s.APIVersion, args: s.Args}
	var err error
	if p.lasts, err = time.ParseDuration(*s.DefaultCacheDuration); err != nil || p.lasts < 0 {
		return nil, fmt.Errorf("defaultCacheDuration %q: want a duration, not negative", clip(*s.DefaultCacheDuration))
	}
	for _, m := range s.MatchImages {
		g, err := parsePattern(m)
		if err != nil {
			return nil, fmt.Errorf("matchImages: %w", err)
		}
		p.images = append(p.images, g)
	}
	for _, e := range s.Env {
		if e.Name == "" || strings.ContainsAny(e.Name, "=\x00") || strings.ContainsRune(e.Value, 0) {
			return nil, fmt.Errorf("env: name %q", clip(e.Name))
		}
		p.env = append(p.env, e.Name+"="+e.Value)
	}
	if t := s.TokenAttributes; t != nil {
		p.tokens = t.RequireServiceAccount == nil || *t.RequireServiceAccount
	}
	return p, nil
}

// clip makes outside text fit for one line of a message.
func clip(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) > 160 {
		s = strings.ToValidUTF8(s[:160], "") + "…"
	}
	return s
}
