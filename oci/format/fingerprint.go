package format

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
)

// fingerprintVersion changes when the same plan gives another result.
const fingerprintVersion = 1

// Fingerprint identifies the result of a plan, in 32 hexadecimal digits. Plans with the same
// fingerprint give the same disks with the same names, domain, guest and format. If a new
// version of this package reads a manifest differently, the fingerprint of its plan differs,
// and the store can hold both results.
func (p *Plan) Fingerprint() string {
	r := planReading{
		Version: fingerprintVersion, Format: p.Format, Architecture: p.Architecture, OS: p.OS,
		Domain: blobsReading(p.DomainXML), Guest: blobsReading(p.GuestConfig),
	}
	for _, disk := range p.Disks {
		r.Disks = append(r.Disks, disk.reading())
	}
	raw, err := json.Marshal(r)
	if err != nil {
		panic(err) // only strings and numbers
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:16])
}

// The readings are the content of a fingerprint. Their JSON names must not change.
type planReading struct {
	Version      int             `json:"version"`
	Format       string          `json:"format"`
	Architecture string          `json:"architecture"`
	OS           string          `json:"os"`
	Domain       []digest.Digest `json:"domain"`
	Guest        []digest.Digest `json:"guest"`
	Disks        []diskReading   `json:"disks"`
}

type diskReading struct {
	Name    string          `json:"name"`
	Alias   string          `json:"alias"`
	Content string          `json:"content"`
	Digest  digest.Digest   `json:"digest"`
	Size    int64           `json:"size"`
	Streams []streamReading `json:"streams"`
	Tree    *treeReading    `json:"tree"`
}

type streamReading struct {
	Blobs       []digest.Digest `json:"blobs"`
	Compression string          `json:"compression"`
	Offset      int64           `json:"offset"`
	Size        int64           `json:"size"`
	Digest      digest.Digest   `json:"digest"`
}

type treeReading struct {
	Path      string          `json:"path"`
	Directory bool            `json:"directory"`
	NamedDisk bool            `json:"namedDisk,omitempty"`
	Layers    []streamReading `json:"layers"`
}

func (d Disk) reading() diskReading {
	r := diskReading{
		Name: d.Name, Alias: d.Alias, Content: d.Content.reading(), Digest: d.Digest, Size: d.Size,
		Streams: streamReadings(d.Streams),
	}
	if d.ContainerDisk != nil {
		r.Tree = &treeReading{Path: d.ContainerDisk.Path, Directory: d.ContainerDisk.Directory, NamedDisk: d.ContainerDisk.NamedDisk, Layers: streamReadings(d.ContainerDisk.Layers)}
	}
	return r
}

func streamReadings(streams []Stream) []streamReading {
	readings := make([]streamReading, len(streams))
	for i, s := range streams {
		readings[i] = streamReading{Compression: s.Compression.reading(), Offset: s.Offset, Size: s.Size, Digest: s.Digest}
		for n := range s.Blobs {
			readings[i].Blobs = append(readings[i].Blobs, s.Blobs[n].Digest)
		}
	}
	return readings
}

func blobsReading(blob *v1.Descriptor) []digest.Digest {
	if blob == nil {
		return nil
	}
	return []digest.Digest{blob.Digest}
}

func (c Content) reading() string {
	if name, ok := ContentNames[c]; ok {
		return name
	}
	return "detect"
}

func (c Compression) reading() string {
	switch c {
	case None, Unnamed: // older versions refused what Unnamed unpacks
		return "none"
	case Gzip:
		return "gzip"
	case Zstd:
		return "zstd"
	case AppleLZ4:
		return "apple-lz4"
	case Maybe:
		return "maybe"
	case Sniffed:
		return "sniffed"
	}
	return fmt.Sprint(int(c))
}
