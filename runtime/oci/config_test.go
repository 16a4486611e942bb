package oci

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestConfigIsTheSpec: the types that a config is decoded into have every part of the specification that is for Linux.
func TestConfigIsTheSpec(t *testing.T) {
	others := []string{"solaris", "windows", "zos", "freebsd"}
	for _, pair := range [][2]reflect.Type{
		{reflect.TypeFor[config](), reflect.TypeFor[specs.Spec]()}, {reflect.TypeFor[linux](), reflect.TypeFor[specs.Linux]()},
		{reflect.TypeFor[resources](), reflect.TypeFor[specs.LinuxResources]()},
	} {
		ours := map[string]bool{}
		for f := range pair[0].Fields() {
			ours[f.Tag.Get("json")] = true
		}
		for f := range pair[1].Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if !ours[name] && !slices.Contains(others, name) {
				t.Errorf("%v has no %s", pair[0], name)
			}
		}
	}
}

// sameAsJSON compares with what encoding/json makes of a config by itself.
func sameAsJSON(t *testing.T, b []byte) {
	t.Helper()
	got, err := parseSpec(b)
	want := new(specs.Spec)
	if werr := json.Unmarshal(b, want); err != nil || werr != nil {
		return // a part for another system may be wrong, and a version too
	}
	if (got.VM == nil) != (want.VM == nil) {
		t.Errorf("vm is %v, want %v", got.VM, want.VM)
	}
	got.VM, want.VM, want.Solaris, want.Windows, want.ZOS, want.FreeBSD = nil, nil, nil, nil, nil, nil
	if !reflect.DeepEqual(got, want) {
		g, gerr := json.Marshal(got)
		w, werr := json.Marshal(want)
		t.Errorf("parseSpec = %s, %v, want %s, %v", g, gerr, w, werr)
	}
}

func TestConfigIsDecodedAsJSON(t *testing.T) {
	for _, s := range []string{
		`{"ociVersion":"1.0.0","linux":null,"hooks":null,"vm":{}}`,
		`{"ociVersion":"1.0.0","linux":{"resources":null,"devices":null,"personality":{}},"hooks":{},"windows":{}}`,
		`{"ociVersion":"1.0.0","linux":{"resources":{"memory":{"limit":1},"memory":{"swap":2},"cpu":{"shares":3},"cpu":null,"hugepageLimits":[],"rdma":{}},"netDevices":{}}}`,
		`{"ociVersion":"1.0.0","LINUX":{"Resources":{"Pids":{"LIMIT":4}},"timeOffsets":{"boottime":{"secs":5}}}}`,
		`{"ociVersion":"1.0.0","hooks":{"prestart":[{"path":"/a"}],"poststop":[{"path":"/b","timeout":6}]}}`,
	} {
		if _, err := parseSpec([]byte(s)); err != nil {
			t.Errorf("parseSpec(%s) = %v", s, err)
		}
		sameAsJSON(t, []byte(s))
	}
	for _, s := range []string{`{"ociVersion":"1.0.0","linux":{"resources":{"memory":5}}}`, `{"ociVersion":"1.0.0","hooks":[]}`, `{"ociVersion":"1.0.0","linux":{"devices":{}}}`} {
		if _, err := parseSpec([]byte(s)); err == nil {
			t.Errorf("parseSpec(%s) succeeded", s)
		}
	}
}
