package format

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of the sardinecake format. Layers of disks have the type of the file with
// "+gzip", and from the second layer on ";chunk=N".
const (
	Sardinecake = "sardinecake"

	typeDomainXML   = "application/vnd.libvirt.domain.config+xml"
	typeGuestConfig = "application/vnd.sardinecake.vm.config.v1+json"
	TypeQCOW2       = "application/x-qemu-disk"
	TypeRaw         = "application/octet-stream"
	TypeISO         = "application/x-iso9660-image"
)

// Media types for writers of images.
const (
	TypeDomainXML   = typeDomainXML
	TypeGuestConfig = typeGuestConfig
)

// sardinecake plans an image of the Python tool: each disk is one gzip stream in one or more
// layers.
//
// A layer without ";chunk=N" begins a new file. (The Python importer looks for the magic
// bytes of gzip instead, which may occur in other layers by chance.)
func sardinecake(m *Manifest, rawConfig []byte) (*Plan, error) {
	c, err := parseConfig(rawConfig)
	if err != nil {
		return nil, err
	}
	p := &Plan{Format: Sardinecake, Architecture: c.Architecture, OS: c.OS, Created: c.created()}
	// The index of each disk's digest in the config's diff_ids.
	var diffIDs []int
	files := 0
	for _, layer := range m.Layers {
		base, params := parameters(layer.MediaType)
		chunk, isChunk := params["chunk"]
		kind, isGzip := strings.CutSuffix(base, "+gzip")
		switch {
		case base == typeDomainXML, base == typeGuestConfig:
			if err := p.addDescription(base, layer); err != nil {
				return nil, err
			}
		case isGzip && isChunk:
			if err := p.addChunk(kind, chunk, layer); err != nil {
				return nil, err
			}
			continue
		case isGzip:
			p.Disks = append(p.Disks, Disk{
				Content: contentOf(kind),
				Streams: []Stream{{Compression: Gzip, Blobs: []v1.Descriptor{layer}}},
			})
			diffIDs = append(diffIDs, files)
		}
		files++
	}
	if len(p.Disks) == 0 {
		return nil, fmt.Errorf("%w: a domain without a disk layer", errUnknown)
	}
	if len(c.RootFS.DiffIDs) == files {
		for i, at := range diffIDs {
			p.Disks[i].Digest = c.RootFS.DiffIDs[at]
		}
	}
	return p, nil
}

// addChunk appends a layer to the last disk. Chunk numbers start at 1 and have no gaps; the
// type is that of the first layer.
func (p *Plan) addChunk(kind, number string, layer v1.Descriptor) error {
	if len(p.Disks) == 0 {
		return fmt.Errorf("%w: layer %s is chunk %s of no disk", errUnknown, layer.Digest, number)
	}
	d := &p.Disks[len(p.Disks)-1]
	blobs := &d.Streams[0].Blobs
	first, _ := parameters((*blobs)[0].MediaType)
	n, err := strconv.Atoi(number)
	if err != nil || n != len(*blobs) || first != kind+"+gzip" {
		return fmt.Errorf("%w: layer %s is chunk %s (%s) where chunk %d (%s) belongs", errUnknown, layer.Digest, number, kind, len(*blobs), strings.TrimSuffix(first, "+gzip"))
	}
	*blobs = append(*blobs, layer)
	return nil
}

func contentOf(kind string) Content {
	switch kind {
	case TypeQCOW2:
		return QCOW2
	case TypeISO:
		return ISO
	}
	return Raw
}
