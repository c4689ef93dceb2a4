package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"

	"gitlab-sardine-executor/executor"
	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/policy"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/source"
	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/seed"
)

// An ImageReport describes an image and what a job would do with it.
type ImageReport struct {
	*oci.Inspection
	// Firmware by which its machines boot, as far as it is known.
	Firmware string `json:"firmware"`
	// Unknown lists what jobs need of the guest, and what only a boot shows.
	Unknown []string `json:"unknownUntilBooted"`
	// Stored is nil if the image is not in the store.
	Stored *StoredReport `json:"stored,omitempty"`
	// Prepare lists what the prepare stage would do; the verbs come first.
	Prepare []string `json:"prepare"`
}

// A StoredReport describes an image in the store.
type StoredReport struct {
	Dir      string     `json:"dir"`
	LastUsed time.Time  `json:"lastUsed"`
	Disks    []oci.Disk `json:"disks"`
}

// InspectImage describes an image as a job would name it: from its registry or layout,
// the settings and the store.
func InspectImage(ctx context.Context, settings *config.Settings, image string, o source.InspectOptions) (*ImageReport, error) {
	resolved := settings.For(image)
	ref, err := oci.ParseReference(resolved.Image)
	if err != nil {
		return nil, err
	}
	o.Architecture = cmp.Or(o.Architecture, resolved.Architecture)
	o.Machines = executor.MachinesOf(settings)
	inspection, err := source.Inspect(ctx, ref, o)
	if err != nil {
		return nil, err
	}
	report := &ImageReport{Inspection: inspection, Unknown: []string{"git", "gitlab-runner"}}
	store, err := storeOf(settings)
	if err != nil {
		return nil, err
	}
	stored, err := store.ByDigest(inspection.Digest)
	if err == nil {
		report.Stored = &StoredReport{Dir: stored.Dir, Disks: stored.Disks}
		report.Stored.LastUsed, err = store.LastUsed(stored)
	} else if errors.Is(err, oci.ErrNotFound) {
		stored, err = nil, nil
	}
	if err != nil {
		return nil, err
	}
	report.Firmware = firmwareOf(stored, inspection, resolved)
	if stored == nil {
		if refused := checkImage(ctx, settings, resolved, inspection); refused != nil {
			report.Prepare = append(report.admission(settings, image, resolved), "refuse the image: "+refused.Error())
			return report, nil
		}
	}
	report.Prepare = slices.Concat(
		report.admission(settings, image, resolved),
		report.pull(resolved),
		report.machine(stored, resolved),
		report.login(resolved),
	)
	return report, nil
}

// checkImage is what a pull asks before it transfers a disk. If libvirt cannot be
// reached, the architecture is left out.
func checkImage(ctx context.Context, settings *config.Settings, resolved config.Resolved, inspection *oci.Inspection) error {
	host, err := executor.OpenHost(ctx, settings)
	if err != nil {
		return executor.CheckImage(ctx, nil, resolved, inspection)
	}
	defer host.Close()
	return executor.CheckImage(ctx, host, resolved, inspection)
}

// admission says whether jobs may use the image.
func (r *ImageReport) admission(settings *config.Settings, image string, resolved config.Resolved) []string {
	if resolved.Image != image {
		return []string{fmt.Sprintf("use %s: the settings replace %s", resolved.Image, image)}
	}
	if !settings.Allowed(image) {
		return []string{fmt.Sprintf("refuse the image: no pattern in allowed_images (%q) allows it", settings.Defaults.AllowedImages)}
	}
	if ref, err := oci.ParseReference(image); err == nil && ref.LocalPrefix() != "" && !settings.AllowsLocal(image) {
		return []string{"refuse the image (try and pull accept it): it is on this host, and no pattern in allowed_images that starts with " + ref.LocalPrefix() + " allows it"}
	}
	return nil
}

func (r *ImageReport) pull(resolved config.Resolved) []string {
	if r.Stored != nil {
		return []string{fmt.Sprintf("use the copy in the store, without a pull (pull_policy: %q)", resolved.PullPolicies)}
	}
	if !slices.ContainsFunc(resolved.PullPolicies, func(p oci.PullPolicy) bool { return p != oci.PullNever }) {
		return []string{"fail: the image is not in the store, and pull_policy forbids a pull"}
	}
	layers := 0
	for _, d := range r.Disks {
		layers += d.Layers
	}
	return []string{fmt.Sprintf("pull up to %s (disks: %d, layers: %d)", units.BytesSize(float64(r.Size)), len(r.Disks), layers)}
}

// machine says what happens to the image's domain XML.
func (r *ImageReport) machine(stored *oci.Image, resolved config.Resolved) []string {
	switch {
	case resolved.Domain != "":
		return []string{"start a machine from the template " + resolved.Domain + " (setting domain)"}
	case r.DomainXML == nil:
		return []string{"start the default machine: the image has no domain XML"}
	case stored == nil:
		return []string{"start a machine from the image's domain XML; pull the image to see which elements are dropped"}
	}
	_, dropped, err := preview(stored, resolved)
	if err != nil {
		return []string{"refuse the image: " + err.Error()}
	}
	lines := []string{"start a machine from the image's domain XML"}
	for _, path := range dropped {
		lines = append(lines, "drop "+path)
	}
	return lines
}

func (r *ImageReport) login(resolved config.Resolved) []string {
	login := resolved.Login(r.Guest)
	var means []string
	if login.Password != "" {
		means = append(means, "a password")
	}
	if login.IdentityFile != "" {
		means = append(means, "the key "+login.IdentityFile)
	}
	if login.Agent {
		means = append(means, "the ssh-agent's keys")
	}
	user := login.User
	switch {
	case means == nil:
		return []string{fmt.Sprintf("log in as %s with a key of the job, which cloud-init or systemd installs in the guest, at port %d",
			cmp.Or(user, seed.DefaultUser), r.Guest.SSHPort())}
	case user == "":
		return []string{"fail: neither the image nor the settings (username) name the user of the guest"}
	}
	return []string{fmt.Sprintf("log in as %s with %s, at port %d", user, strings.Join(means, ", "), r.Guest.SSHPort())}
}

// previewName is the name of the machine in a preview.
const previewName = "sardine-00000000-0"

// PreviewDomain returns the domain XML of the machine for a job with image, and the
// elements of the image's domain XML that it drops. The image must be in the store.
func PreviewDomain(settings *config.Settings, image string) (doc string, dropped []string, err error) {
	resolved := settings.For(image)
	ref, err := oci.ParseReference(resolved.Image)
	if err != nil {
		return "", nil, err
	}
	store, err := storeOf(settings)
	if err != nil {
		return "", nil, err
	}
	stored, err := store.Lookup(ref, resolved.Architecture)
	if errors.Is(err, oci.ErrNotFound) {
		return "", nil, fmt.Errorf("%w: pull it first (gitlab-sardine-executor pull %s)", err, image)
	} else if err != nil {
		return "", nil, err
	}
	return preview(stored, resolved)
}

func preview(stored *oci.Image, resolved config.Resolved) (doc string, dropped []string, err error) {
	o := executor.FetchAndCloneOptions{
		Name: previewName, Settings: resolved, Dirs: config.Dirs{Overlays: "/clones", Jobs: "/jobs"},
		Size:   policy.SizeFor(resolved, 0, 0),
		Record: record.Record{Image: stored.Reference, Digest: stored.Digest.String()},
	}
	return vm.Preview(executor.SpecFor(stored, o))
}
