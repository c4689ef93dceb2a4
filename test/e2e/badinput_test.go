//go:build boot

package e2e

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
)

// What is wrong is said in one line that names it, and fails the right side.
func TestBadInput(t *testing.T) {
	tests := []struct {
		name string
		// arrange breaks a site or its job.
		arrange func(t *testing.T, s *site, job *gitlab.Job)
		status  gitlab.Status
		// says is what the line must contain.
		says []string
	}{
		{
			"no image",
			func(_ *testing.T, _ *site, job *gitlab.Job) { job.Image = nil },
			gitlab.BuildFailure, []string{"image"},
		},
		{
			"not a reference",
			func(_ *testing.T, _ *site, job *gitlab.Job) { job.Image.Name = "Not A Reference" },
			gitlab.BuildFailure, []string{"Not A Reference"},
		},
		{
			"unknown image",
			func(_ *testing.T, s *site, job *gitlab.Job) { job.Image.Name = s.registry.Image("vms/unknown:1") },
			gitlab.BuildFailure, []string{"vms/unknown:1", "not found"},
		},
		{
			"image that is not allowed",
			func(t *testing.T, s *site, _ *gitlab.Job) {
				s.Configure(t, `allowed_images = ["registry.example.com/**"]`)
			},
			gitlab.BuildFailure, []string{"vms/guest:1", "allowed_images"},
		},
		{
			"image that is no disk",
			func(t *testing.T, s *site, job *gitlab.Job) { job.Image.Name = s.pushEmptyImage(t) },
			gitlab.BuildFailure, []string{"vms/empty:1"},
		},
		{
			"broken domain XML",
			func(t *testing.T, s *site, job *gitlab.Job) {
				job.Image.Name = s.pushDescribed(t, "<domain><os>", "x-qemu-disk")
			},
			gitlab.BuildFailure, []string{"vms/described:1", "domain XML of the image refused"},
		},
		{
			"architecture without an emulator",
			func(t *testing.T, s *site, job *gitlab.Job) {
				job.Image.Name = s.pushDescribed(t, `<domain type="kvm"><memory unit="MiB">64</memory><vcpu>1</vcpu><os><type arch="s390x">hvm</type></os><devices>`+
					`<disk type="file" device="disk"><source file="disk.qcow2"/><target dev="vda"/></disk></devices></domain>`, "x-qemu-disk")
			},
			gitlab.BuildFailure, []string{"vms/described:1", "is for s390x", "use an image for "},
		},
		{
			"ISO image without a disk",
			func(t *testing.T, s *site, job *gitlab.Job) {
				job.Image.Name = s.pushDescribed(t, "<domain/>", "x-iso9660-image")
			},
			gitlab.BuildFailure, []string{"vms/described:1", "an ISO image and no disk"},
		},
		{
			"text instead of a disk",
			func(t *testing.T, s *site, job *gitlab.Job) { job.Image.Name = s.pushDescribed(t, "", "octet-stream") },
			gitlab.BuildFailure, []string{"vms/described:1", "it is not a disk but text"},
		},
		{
			"storage_reserve that is reached",
			func(t *testing.T, s *site, _ *gitlab.Job) {
				s.forgetImages(t)
				s.Configure(t, `storage_reserve = "99.999%"`)
			},
			gitlab.SystemFailure, []string{"storage_reserve: ", "must stay free on ", "prune"},
		},
		{
			"registry down",
			func(t *testing.T, s *site, job *gitlab.Job) {
				registry := testbed.StartRegistry(t)
				s.Mode.Trust(t, registry)
				registry.Stop()
				job.Image.Name = registry.Image("vms/guest:1")
			},
			gitlab.SystemFailure, []string{"127.0.0.1", "connection refused"},
		},
		{
			"no settings",
			func(t *testing.T, s *site, _ *gitlab.Job) {
				if err := os.Remove(s.Config); err != nil {
					t.Fatal(err)
				}
			},
			gitlab.BuildFailure, []string{"config.toml"},
		},
		{
			"settings that are not TOML",
			func(t *testing.T, s *site, _ *gitlab.Job) { s.Mode.WriteFile(t, s.Config, "[defaults\n") },
			gitlab.BuildFailure, []string{"config.toml: line 1"},
		},
		{
			"unknown setting",
			func(t *testing.T, s *site, _ *gitlab.Job) { s.Configure(t, `pul_policy = "always"`) },
			gitlab.BuildFailure, []string{"config.toml: line 11", "pul_policy", "pull_policy"},
		},
		{
			"libvirt not reachable",
			func(t *testing.T, s *site, _ *gitlab.Job) {
				s.Configure(t, `connect = "qemu+unix:///system?socket=/run/no-libvirt"`)
			},
			gitlab.SystemFailure, []string{"/run/no-libvirt"},
		},
		{
			"guest that never answers",
			func(t *testing.T, s *site, job *gitlab.Job) {
				s.Configure(t, `timeout = "3s"`)
				job.Image.Name = s.pushBlankDisk(t)
			},
			gitlab.SystemFailure, []string{"3s"},
		},
		{
			"guest that rejects the password",
			func(t *testing.T, s *site, job *gitlab.Job) {
				job.Image.Name = s.pushImage(t, "vms/password:1", testbed.Guest(t), `{"users": [{"username": "vagrant", "password": "wrong"}]}`)
			},
			gitlab.BuildFailure, []string{"vagrant", "VM config", "identity_file"},
		},
	}
	// What each attempt waits for is seen in one.
	waits := []string{"registry down", "guest that never answers"}
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				s := sharedSite(t, mode)
				job := s.job("echo script runs")
				test.arrange(t, s, &job)
				if slices.Contains(waits, test.name) {
					s.checkPrepareFails(t, job, test.says)
					return
				}
				result := s.runner(t).Run(deadline(t), job)
				checkOutputs(t, result)
				if result.Status != test.status {
					t.Errorf("want %s, got %s", test.status, result)
				}
				failed, attempts := failures(result)
				if want := map[gitlab.Status]int{gitlab.BuildFailure: 1, gitlab.SystemFailure: gitlab.PrepareAttempts}[test.status]; attempts != want {
					t.Errorf("%d attempts, want %d: %s", attempts, want, result)
				}
				checkErrorLine(t, failed.Stderr, test.says)
			})
		}
	})
}

// On a libvirt network a guest can fail to get an address.
func TestGuestWithoutAddress(t *testing.T) {
	systemOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode, `timeout = "3s"`)
		job := s.job("true")
		job.Image.Name = s.pushBlankDisk(t)
		s.checkPrepareFails(t, job, []string{"3s", "got no address from the network"})
	})
}

// checkPrepareFails has one attempt to prepare a job fail on the host's side, and wants it
// to leave nothing.
func (s *site) checkPrepareFails(t *testing.T, job gitlab.Job, says []string) {
	t.Helper()
	e := s.runner(t).Stage(deadline(t), job, "prepare")
	if e.ExitCode != gitlab.SystemFailureExitCode || e.OutputHeld {
		t.Errorf("want a system failure, got %s", e)
	}
	checkErrorLine(t, e.Stderr, says)
	s.mustCleanUp(t, job)
}

// failures returns the first execution that failed, and how many attempts there
// were.
func failures(result gitlab.Result) (first gitlab.Execution, attempts int) {
	for _, e := range result.Executions {
		if e.ExitCode != 0 && first.Stage == "" {
			first = e
		}
		attempts = e.Attempt
	}
	return first, attempts
}

var errorLine = regexp.MustCompile(`^ERROR: .+ \((build|system) failure\)\n$`)

// checkErrorLine wants exactly one line that begins with ERROR, the last, and in it
// whose side the failure is on and what is to be said.
func checkErrorLine(t *testing.T, stderr string, says []string) {
	t.Helper()
	var lines []string
	for line := range strings.Lines(stderr) {
		if strings.Contains(line, "ERROR") {
			lines = append(lines, line)
		}
	}
	if len(lines) != 1 {
		t.Fatalf("%d error lines, want 1, in:\n%s", len(lines), stderr)
	}
	if !strings.HasSuffix(stderr, lines[0]) || !errorLine.MatchString(lines[0]) {
		t.Errorf("the last line does not say what failed, and whose side that is on:\n%s", stderr)
	}
	for _, text := range says {
		if !strings.Contains(lines[0], text) {
			t.Errorf("the error does not mention %q: %s", text, lines[0])
		}
	}
}

// Somebody calls a stage by hand.
func TestWithoutRunner(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode)
		for _, args := range [][]string{{"config"}, {"prepare"}, {"run", "/dev/null", "build_script"}, {"cleanup"}} {
			t.Run(args[0], func(t *testing.T) {
				cmd := mode.Command(deadline(t), s.Driver, append([]string{"--config", s.Config}, args...)...)
				var stderr strings.Builder
				cmd.Stderr = &stderr
				err := cmd.Run()
				if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != gitlab.BuildFailureExitCode {
					t.Errorf("ended with %v, want exit status %d", err, gitlab.BuildFailureExitCode)
				}
				checkErrorLine(t, stderr.String(), []string{"GitLab Runner", "CI_JOB_ID"})
			})
		}
	})
}

// pushImage exports a disk with a VM config and pushes it.
func (s *site) pushImage(t *testing.T, name, disk, vmConfig string) string {
	t.Helper()
	config := filepath.Join(t.TempDir(), "vmconfig.json")
	if err := os.WriteFile(config, []byte(vmConfig), 0o644); err != nil {
		t.Fatal(err)
	}
	layout, err := export(t, disk, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(filepath.Dir(layout)) })
	image := s.registry.Image(name)
	s.push(t, layout, image)
	return image
}

// pushDescribed pushes an image with a domain, or a sensible one if that is empty, and
// one disk of a type, which is text.
func (s *site) pushDescribed(t *testing.T, domain, kind string) string {
	t.Helper()
	if domain == "" {
		domain = `<domain type="kvm"><memory unit="MiB">64</memory><vcpu>1</vcpu><os><type arch="x86_64">hvm</type></os><devices>` +
			`<disk type="file" device="disk"><source file="disk.raw"/><target dev="vda"/></disk></devices></domain>`
	}
	layout := filepath.Join(s.Mode.Dir(t), "described")
	blob := func(mediaType string, content []byte) v1.Descriptor {
		d := digest.FromBytes(content)
		path := filepath.Join(layout, "blobs", "sha256", d.Encoded())
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		s.Mode.WriteFile(t, path, string(content))
		return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(content))}
	}
	marshal := func(v any) []byte {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	var disk bytes.Buffer
	z := gzip.NewWriter(&disk)
	z.Name = "disk.raw"
	if _, err := z.Write([]byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	manifest := v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: blob(v1.MediaTypeImageConfig, []byte(`{"architecture":"amd64","os":"linux"}`)),
		Layers: []v1.Descriptor{
			blob("application/vnd.libvirt.domain.config+xml", []byte(domain)),
			blob("application/"+kind+"+gzip", disk.Bytes()),
		},
	}
	desc := blob(v1.MediaTypeImageManifest, marshal(manifest))
	desc.Annotations = map[string]string{v1.AnnotationRefName: "1"}
	s.Mode.WriteFile(t, filepath.Join(layout, "index.json"), string(marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []v1.Descriptor{desc}})))
	s.Mode.WriteFile(t, filepath.Join(layout, "oci-layout"), `{"imageLayoutVersion":"1.0.0"}`)
	image := s.registry.Image("vms/described:1")
	s.push(t, layout, image)
	return image
}

// pushBlankDisk pushes an image from which nothing boots.
func (s *site) pushBlankDisk(t *testing.T) string {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "blank.qcow2")
	testbed.System(t).Run(t, "qemu-img", "create", "-q", "-f", "qcow2", disk, "64M")
	return s.pushImage(t, "vms/blank:1", disk, `{"users": [{"username": "vagrant", "password": "vagrant"}]}`)
}

// pushEmptyImage pushes a container image without layers.
func (s *site) pushEmptyImage(t *testing.T) string {
	t.Helper()
	layout := filepath.Join(s.Mode.Dir(t), "layout")
	s.Mode.Run(t, "umoci", "init", "--layout", layout)
	s.Mode.Run(t, "umoci", "new", "--image", layout+":1")
	image := s.registry.Image("vms/empty:1")
	s.push(t, layout, image)
	return image
}
