package format

import (
	"fmt"

	"github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	virterConfig = "application/vnd.com.linbit.virter.image.v1"
	virterLayer  = "application/vnd.com.linbit.virter.layer.v1.qcow2.gzip"
)

// isVirter plans an image of LINBIT's virter: a backing chain, base first. Each qcow2 header
// refers to the previous layer as "./virter:layer:" with the digest of its content.
func isVirter(i *image) (*Plan, error) {
	if i.Config.MediaType != virterConfig {
		return nil, nil
	}
	if i.configErr != nil {
		return nil, i.configErr
	}
	diffIDs := i.config.RootFS.DiffIDs
	if len(i.Layers) == 0 || len(diffIDs) != len(i.Layers) {
		return nil, fmt.Errorf("%w: a virter image of %d layers and %d diff ids", errUnknown, len(i.Layers), len(diffIDs))
	}
	p := &Plan{Format: "virter"}
	for n, layer := range i.Layers {
		if layer.MediaType != virterLayer {
			return nil, fmt.Errorf("%w: a virter image with a layer of type %q", errUnknown, layer.MediaType)
		}
		if err := diffIDs[n].Validate(); err != nil {
			return nil, fmt.Errorf("%w: diff id %q: %w", errUnknown, diffIDs[n], err)
		}
		p.Disks = append(p.Disks, Disk{
			Name:    fmt.Sprintf("layer-%d.qcow2", n),
			Alias:   "virter:layer:" + diffIDs[n].String(),
			Content: QCOW2,
			Streams: []Stream{{Blobs: []v1.Descriptor{layer}, Compression: Gzip}},
			Digest:  diffIDs[n],
		})
	}
	return p, nil
}
