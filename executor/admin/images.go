package admin

import (
	"context"

	"github.com/opencontainers/go-digest"

	"gitlab-sardine-executor/executor"
	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/oci/store"
	"gitlab-sardine-executor/vm/define"
	"gitlab-sardine-executor/vm/record"
)

// An ImageUse is an image in the store and the domains that use it.
type ImageUse struct {
	store.StoredImage
	// Domains with disks on top of the image: machines of jobs and imported ones.
	Domains []string
}

// ListImages lists the images in the store, sorted by digest. An error together with a
// list means that libvirt did not answer, and Domains are not known.
func ListImages(ctx context.Context, settings *config.Settings) ([]ImageUse, error) {
	local, err := storeOf(settings)
	if err != nil {
		return nil, err
	}
	stored, err := local.Inventory(ctx)
	if err != nil {
		return nil, err
	}
	domains, unknown := domainsByImage(ctx, settings)
	images := make([]ImageUse, len(stored))
	for i, image := range stored {
		images[i] = ImageUse{StoredImage: image, Domains: domains[image.Digest]}
	}
	return images, unknown
}

// domainsByImage returns the names of the domains on top of each image.
func domainsByImage(ctx context.Context, settings *config.Settings) (map[digest.Digest][]string, error) {
	ctx, cancel := context.WithTimeout(ctx, executor.LibvirtTimeout)
	defer cancel()
	host, err := executor.OpenHost(ctx, settings)
	if err != nil {
		return nil, err
	}
	defer host.Close()
	machines, err := record.List(ctx, host)
	if err != nil {
		return nil, err
	}
	bases, err := define.List(ctx, host)
	if err != nil {
		return nil, err
	}
	domains := make(map[digest.Digest][]string)
	for _, m := range machines {
		d := digest.Digest(m.Record.Digest)
		domains[d] = append(domains[d], m.Name)
	}
	for _, base := range bases {
		d := digest.Digest(base.Origin.Digest)
		domains[d] = append(domains[d], base.Name)
	}
	return domains, nil
}

// storeOf opens the store of the settings.
func storeOf(settings *config.Settings) (*store.Store, error) {
	dirs, err := settings.Dirs()
	if err != nil {
		return nil, err
	}
	return store.Open(dirs.Store)
}
