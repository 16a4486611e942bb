package main

import (
	"bytes"
	"os"
	"slices"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestDaemonSet: the configuration in the DaemonSet is one, and what the pod needs
// is where snapd looks for it.
func TestDaemonSet(t *testing.T) {
	text, err := os.ReadFile("../../docs/kubernetes/daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	type mount struct{ Name, MountPath, MountPropagation string }
	var object struct {
		Kind string
		Data map[string]string
		Spec struct {
			Template struct {
				Spec struct {
					HostPID    bool
					Containers []struct {
						Args         []string
						VolumeMounts []mount
					}
					Volumes []struct {
						Name     string
						HostPath struct{ Path string }
					}
				}
			}
		}
	}
	var c Config
	for part := range bytes.SplitSeq(text, []byte("\n---\n")) {
		object.Data = nil
		if err := yaml.Unmarshal(part, &object); err != nil {
			t.Fatal(err)
		}
		if object.Kind == "ConfigMap" {
			if c, err = load(t, object.Data["snapd.toml"]); err != nil {
				t.Fatal(err)
			}
		}
	}
	pod := object.Spec.Template.Spec
	if object.Kind != "DaemonSet" || len(pod.Containers) != 1 || !pod.HostPID || c.KeeperCgroup == "" {
		t.Fatalf("%s: %+v, keeper_cgroup %q", object.Kind, pod, c.KeeperCgroup)
	}
	for path, propagation := range map[string]string{c.Root: "", c.Run: "Bidirectional", "/sys/fs/cgroup": "", "/dev": ""} {
		i := slices.IndexFunc(pod.Containers[0].VolumeMounts, func(m mount) bool { return m.MountPath == path })
		if i < 0 || pod.Containers[0].VolumeMounts[i].MountPropagation != propagation {
			t.Errorf("%s is not mounted as it has to be", path)
			continue
		}
		for _, v := range pod.Volumes {
			if v.Name == pod.Containers[0].VolumeMounts[i].Name && v.HostPath.Path != path {
				t.Errorf("%s is %s on the node", path, v.HostPath.Path)
			}
		}
	}
}
