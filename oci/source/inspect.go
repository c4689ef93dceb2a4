package source

import (
	"context"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/registry"
	"gitlab-sardine-executor/oci/transport"
)

// InspectOptions of [Inspect]; the zero value is fine.
type InspectOptions struct {
	Options
	// Architecture to select from an index (Go's name); empty means that of this host.
	Architecture string
}

// Inspect describes an image in a registry, a layout or on this host. The error is [oci.ErrFormat], and says
// what was found, if a job could not use the image.
func Inspect(ctx context.Context, ref oci.Reference, o InspectOptions) (*oci.Inspection, error) {
	src, err := Open(ctx, ref, o.Options, registry.DefaultRetries(o.StallTimeout))
	if err != nil {
		return nil, fmt.Errorf("inspecting %s: %w", ref, err)
	}
	defer src.Close()
	inspection, err := inspect(ctx, src, ref, o)
	if err != nil {
		return nil, fmt.Errorf("inspecting %s: %w", ref, err)
	}
	return inspection, nil
}

func inspect(ctx context.Context, src transport.Source, ref oci.Reference, o InspectOptions) (*oci.Inspection, error) {
	top, err := transport.ReadDocument(ctx, src, v1.Descriptor{Digest: ref.Digest()})
	if err != nil {
		return nil, err
	}
	m, d, plan, err := transport.ResolvePlan(ctx, src, top, oci.Architecture(o.Architecture))
	if err != nil {
		return nil, err
	}
	i, err := InspectManifest(ctx, src, m, plan)
	if err != nil {
		return nil, err
	}
	if i.Reference, i.Digest = ref.String(), d; d != top.Digest {
		i.Index = top.Digest
	}
	return i, nil
}

// InspectManifest reads an image without its disks. plan is that of the manifest.
func InspectManifest(ctx context.Context, src transport.Source, m *format.Manifest, plan *format.Plan) (_ *oci.Inspection, err error) {
	i := &oci.Inspection{
		Format: plan.Format, Evidence: evidence(m),
		Architecture: plan.Architecture, OS: plan.OS, Created: plan.Created, Disks: []oci.InspectedDisk{},
	}
	for _, layer := range m.Layers {
		i.Size += layer.Size
	}
	for _, disk := range plan.Disks {
		i.Disks = append(i.Disks, inspectDisk(disk))
	}
	if plan.DomainXML != nil {
		if i.DomainXML, err = transport.ReadBlob(ctx, src, *plan.DomainXML, maxDomainXML); err != nil {
			return nil, fmt.Errorf("domain XML: %w", err)
		}
	}
	if plan.GuestConfig != nil {
		raw, err := transport.ReadBlob(ctx, src, *plan.GuestConfig, maxGuestConfig)
		if err != nil {
			return nil, fmt.Errorf("VM config: %w", err)
		}
		if i.Guest, err = oci.ParseGuestConfig(raw); err != nil {
			return nil, err
		}
	}
	return i, nil
}

func inspectDisk(disk format.Disk) oci.InspectedDisk {
	d := oci.InspectedDisk{Name: disk.Name, Size: disk.Size, Digest: disk.Digest}
	switch disk.Content {
	case format.QCOW2:
		d.Content = "qcow2"
	case format.Raw:
		d.Content = "raw"
	case format.ISO:
		d.Content = "iso"
	}
	seen := make(map[digest.Digest]bool)
	for _, stream := range disk.Streams {
		for _, blob := range stream.Blobs {
			d.Layers++
			if !seen[blob.Digest] {
				seen[blob.Digest] = true
				d.Compressed += blob.Size
			}
		}
	}
	return d
}

// evidence lists the types in a manifest that identify its format, with their numbers.
func evidence(m *format.Manifest) []string {
	var facts []string
	if m.ArtifactType != "" {
		facts = append(facts, "artifact type "+m.ArtifactType)
	}
	if m.Config.MediaType != "" && m.Config.MediaType != v1.MediaTypeEmptyJSON {
		facts = append(facts, "config of type "+m.Config.MediaType)
	}
	count := make(map[string]int)
	var order []string
	for _, layer := range m.Layers {
		kind, _, _ := strings.Cut(layer.MediaType, ";")
		if title := layer.Annotations[v1.AnnotationTitle]; title != "" {
			kind += fmt.Sprintf(", titled %q", title)
		}
		if count[kind]++; count[kind] == 1 {
			order = append(order, kind)
		}
	}
	const most = 20
	for n, kind := range order {
		if n == most {
			facts = append(facts, fmt.Sprintf("and layers of %d more types", len(order)-most))
			break
		}
		if count[kind] == 1 {
			facts = append(facts, "a layer of type "+kind)
		} else {
			facts = append(facts, fmt.Sprintf("%d layers of type %s", count[kind], kind))
		}
	}
	return facts
}

// Maximum sizes of parts of an image that are kept in memory, in bytes.
const (
	maxDomainXML   = 4 << 20
	maxGuestConfig = 1 << 20
)
