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
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/seed"
)

// An ImageReport is what there is to know of an image before a job uses it.
type ImageReport struct {
	*oci.Inspection
	// Stored is nil if the store does not hold the image.
	Stored *StoredReport `json:"stored,omitempty"`
	// Prepare says in sentences what the prepare stage would do with it.
	Prepare []string `json:"prepare"`
}

// A StoredReport is what the store knows of an image that it holds.
type StoredReport struct {
	Dir      string     `json:"dir"`
	LastUsed time.Time  `json:"lastUsed"`
	Disks    []oci.Disk `json:"disks"`
}

// InspectImage asks the registry, or a layout, about an image that a job could
// name, and looks what the settings and the store add to that.
func InspectImage(ctx context.Context, settings *config.Settings, image string, o oci.InspectOptions) (*ImageReport, error) {
	resolved := settings.For(image)
	ref, err := oci.ParseReference(resolved.Image)
	if err != nil {
		return nil, err
	}
	inspection, err := oci.Inspect(ctx, ref, o)
	if err != nil {
		return nil, err
	}
	report := &ImageReport{Inspection: inspection}
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
	report.Prepare = slices.Concat(
		report.admission(settings, image, resolved),
		report.pull(resolved),
		report.machine(stored, resolved),
		report.login(resolved),
	)
	return report, nil
}

// admission says whether a job gets the image at all.
func (r *ImageReport) admission(settings *config.Settings, image string, resolved config.Resolved) []string {
	if resolved.Image != image {
		return []string{fmt.Sprintf("use %s: the settings put it in place of %s", resolved.Image, image)}
	}
	if !settings.Allowed(image) {
		return []string{fmt.Sprintf("refuse the image: no pattern in allowed_images (%q) allows it", settings.Defaults.AllowedImages)}
	}
	if strings.HasPrefix(image, "oci:") && !settings.AllowsLayout(image) {
		return []string{"refuse the image to jobs (try and pull may use it): it is a directory of this host, and no pattern in allowed_images that starts with oci: allows it"}
	}
	return nil
}

func (r *ImageReport) pull(resolved config.Resolved) []string {
	if r.Stored != nil {
		return []string{fmt.Sprintf("use the copy in the store, without a pull (pull_policy: %q)", resolved.PullPolicies)}
	}
	if !slices.ContainsFunc(resolved.PullPolicies, func(p oci.PullPolicy) bool { return p != oci.PullNever }) {
		return []string{"fail: the store does not hold the image, and pull_policy forbids a pull"}
	}
	layers := 0
	for _, d := range r.Disks {
		layers += d.Layers
	}
	return []string{fmt.Sprintf("pull up to %s (disks: %d, layers: %d)", units.BytesSize(float64(r.Size)), len(r.Disks), layers)}
}

// machine says what becomes of the domain that the image brings.
func (r *ImageReport) machine(stored *oci.Image, resolved config.Resolved) []string {
	switch {
	case resolved.Domain != "":
		return []string{"start a machine made of the template " + resolved.Domain + " (setting domain)"}
	case r.DomainXML == nil:
		return []string{"start the default machine: the image brings no domain XML"}
	case stored == nil:
		return []string{"start a machine made of the image's domain XML; what of it is kept can be told when the image is in the store (pull)"}
	}
	_, dropped, err := preview(stored, resolved)
	if err != nil {
		return []string{"refuse the image: " + err.Error()}
	}
	lines := []string{"start a machine made of the image's domain XML"}
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
		return []string{fmt.Sprintf("log in as %s with a key of the job, of which cloud-init or systemd in the guest is told, at port %d",
			cmp.Or(user, seed.DefaultUser), r.Guest.SSHPort())}
	case user == "":
		return []string{"find nobody who says which user runs the job: neither the image nor the settings (username)"}
	}
	return []string{fmt.Sprintf("log in as %s with %s, at port %d", user, strings.Join(means, ", "), r.Guest.SSHPort())}
}

// previewName is the name of a machine that nobody starts.
const previewName = "sardine-00000000-0"

// PreviewDomain is the domain XML of the machine that a job with image would get,
// and what is dropped from the image's. The store must hold the image.
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
	stored, err := store.Lookup(ref, "")
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
		Size:   executor.SizeFor(resolved, 0, 0),
		Record: record.Record{Image: stored.Reference, Digest: stored.Digest.String()},
	}
	return vm.Preview(executor.SpecFor(stored, o))
}
