package credentials

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const goodConfig = `apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: ecr-credential-provider
    matchImages:
      - "*.dkr.ecr.*.amazonaws.com"
      - "registry.io:8080/path"
    defaultCacheDuration: "12h"
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    args:
      - get-credentials
    env:
      - name: AWS_PROFILE
        value: example
`

// change is goodConfig with one thing replaced.
func change(from, to string) string { return strings.Replace(goodConfig, from, to, 1) }

func TestProviderConfig(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want string // part of the error
	}{
		"good":              {goodConfig, ""},
		"JSON":              {`{"apiVersion":"kubelet.config.k8s.io/v1","kind":"CredentialProviderConfig","providers":[{"name":"p","matchImages":["x.io"],"defaultCacheDuration":"0s","apiVersion":"credentialprovider.kubelet.k8s.io/v1"}]}`, ""},
		"older versions":    {strings.ReplaceAll(goodConfig, "k8s.io/v1", "k8s.io/v1beta1"), ""},
		"not YAML":          {"\t{", "yaml"},
		"empty":             {"", "kind"},
		"another kind":      {change("CredentialProviderConfig", "KubeletConfiguration"), "kind"},
		"another group":     {change("kubelet.config.k8s.io/v1", "apps/v1"), "kind"},
		"no providers":      {change(goodConfig[strings.Index(goodConfig, "  - name"):], "  []"), "no credential provider"},
		"no name":           {change("ecr-credential-provider", `""`), "name"},
		"a path as name":    {change("ecr-credential-provider", "../../bin/sh"), "name"},
		"a dot as name":     {change("ecr-credential-provider", `".."`), "name"},
		"a blank in name":   {change("ecr-credential-provider", "a b"), "name"},
		"bad pattern":       {change(`"registry.io:8080/path"`, `"/x"`), "matchImages"},
		"no patterns":       {change("    matchImages:\n      - \"*.dkr.ecr.*.amazonaws.com\"\n      - \"registry.io:8080/path\"\n", ""), "matchImages"},
		"no duration":       {change("    defaultCacheDuration: \"12h\"\n", ""), "defaultCacheDuration"},
		"a bad duration":    {change("12h", "12"), "defaultCacheDuration"},
		"negative duration": {change("12h", "-12h"), "defaultCacheDuration"},
		"plugin's version":  {change("credentialprovider.kubelet.k8s.io/v1", "credentialprovider.kubelet.k8s.io/v2"), "apiVersion"},
		"bad env":           {change("AWS_PROFILE", "A=B"), "env"},
		"wrong type":        {change(`"12h"`, "[1]"), "defaultCacheDuration"},
		"too large":         {goodConfig + "#" + strings.Repeat("x", maxProviderConfig), "more than"},
		"two of one name":   {goodConfig + goodConfig[strings.Index(goodConfig, "  - name"):], "two providers"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.yaml")
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			list, err := readProviders(path, slog.New(slog.DiscardHandler))
			if c.want == "" && (err != nil || len(list) != 1) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path)) {
				t.Errorf("readProviders = %v, %v, want an error about %q", list, err, c.want)
			}
		})
	}
}

func TestProviderConfigFields(t *testing.T) {
	list, warning, err := parseProviders([]byte(goodConfig + "    newField: 1\n"))
	if err != nil || warning == nil || !strings.Contains(warning.Error(), "newField") {
		t.Fatalf("parseProviders = %v, %v, want a warning about newField", warning, err)
	}
	p := list[0]
	if p.name != "ecr-credential-provider" || p.lasts != 12*time.Hour || p.apiVersion != "credentialprovider.kubelet.k8s.io/v1" ||
		len(p.args) != 1 || p.args[0] != "get-credentials" || len(p.env) != 1 || p.env[0] != "AWS_PROFILE=example" || len(p.images) != 2 || p.tokens {
		t.Errorf("provider %+v", p)
	}
	for text, want := range map[string]bool{"true": true, "false": false} {
		list, _, err = parseProviders([]byte(goodConfig + "    tokenAttributes:\n      serviceAccountTokenAudience: x\n      cacheType: Token\n      requireServiceAccount: " + text + "\n"))
		if err != nil || list[0].tokens != want {
			t.Errorf("requireServiceAccount: %s: %v, %v", text, list, err)
		}
	}
}

// A folder's files are merged in the order of their names.
func TestProviderConfigFolder(t *testing.T) {
	dir := t.TempDir()
	for name, provider := range map[string]string{"20.yml": "second", "10.yaml": "first", "30.json": "third", "README": "none"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(change("ecr-credential-provider", provider)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "30.json"), []byte(`{"apiVersion":"kubelet.config.k8s.io/v1","kind":"CredentialProviderConfig","providers":[{"name":"third","matchImages":["x.io"],"defaultCacheDuration":"0s","apiVersion":"credentialprovider.kubelet.k8s.io/v1"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	list, err := readProviders(dir, slog.New(slog.DiscardHandler))
	if err != nil || len(list) != 3 || list[0].name != "first" || list[1].name != "second" || list[2].name != "third" {
		t.Errorf("readProviders = %v, %v", list, err)
	}
	if _, err := readProviders(t.TempDir(), slog.New(slog.DiscardHandler)); err == nil {
		t.Error("an empty folder is a configuration")
	}
	if _, err := readProviders("/nonexistent", slog.New(slog.DiscardHandler)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("readProviders = %v", err)
	}
}

func FuzzProviderConfig(f *testing.F) {
	f.Add([]byte(goodConfig))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		list, _, err := parseProviders(raw)
		if err != nil {
			return
		}
		for _, p := range list {
			if p.name == "" || strings.Contains(p.name, "/") || p.name == ".." || p.lasts < 0 || len(p.images) == 0 || !known(pluginGroup, p.apiVersion) {
				t.Errorf("provider %+v", p)
			}
		}
	})
}
