package format

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
)

// FuzzManifest reads manifests and configs of strangers.
func FuzzManifest(f *testing.F) {
	blobs, err := filepath.Glob(filepath.Join("..", "testdata", "sardinecake", "*", "oci", "blobs", "sha256", "*"))
	if err != nil || len(blobs) == 0 {
		f.Fatal(blobs, err)
	}
	for _, blob := range blobs {
		if info, err := os.Stat(blob); err != nil || info.Size() > 10_000 {
			continue
		}
		raw, err := os.ReadFile(blob)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, raw)
	}
	empty := digest.FromString("")
	for _, text := range []string{
		`{"artifactType":"application/vnd.diskimage.qcow2","layers":[%[1]s]}`,
		`{"config":{"mediaType":"application/vnd.trycua.lume.config.v1+json"},"layers":[%[1]s,%[1]s]}`,
		`{"config":{"mediaType":"application/vnd.oci.image.config.v1+json"},"layers":[%[1]s]}`,
		`{"layers":[{"mediaType":"application/vnd.cirruslabs.tart.config.v1"},%[1]s]}`,
	} {
		layer := fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.layer.v1.tar","size":1,"digest":%q,"annotations":{"org.opencontainers.image.title":"a.qcow2.xz"}}`, empty)
		f.Add(fmt.Appendf(nil, text, layer), []byte(`{"os":"linux","created":1.5,"rootfs":{"diff_ids":["`+empty.String()+`"]}}`))
	}
	f.Fuzz(func(t *testing.T, raw, config []byte) {
		if child, err := ChooseChild(raw, "amd64"); err == nil {
			if err := child.Digest.Validate(); err != nil {
				t.Error(err)
			}
		} else if !errors.Is(err, ErrUnknown) {
			t.Error(err)
		}
		m, err := ParseManifest(raw, "")
		if err == nil {
			var p *Plan
			if p, err = DetectPlan(m, config); err == nil {
				checkPlan(t, p)
			}
		}
		if err != nil && !errors.Is(err, ErrUnknown) {
			t.Error(err)
		}
	})
}

// checkPlan: what is planned can be carried out.
func checkPlan(t *testing.T, p *Plan) {
	t.Helper()
	if len(p.Disks) == 0 || p.Format == "" || p.TransferSize() < 0 || p.UnpackedSize() < 0 {
		t.Errorf("plan %+v", p)
	}
	for _, d := range p.Disks {
		if (d.Tree == nil) == (len(d.Streams) == 0) && p.Format != Chunked {
			t.Errorf("disk %+v", d)
		}
		for _, s := range d.Streams {
			if len(s.Blobs) == 0 || s.Offset < 0 || s.Size < 0 {
				t.Errorf("stream %+v", s)
			}
		}
	}
}

// FuzzChunkTable makes tables of chunks, of which only those may pass that ascend
// and fit into the disk.
func FuzzChunkTable(f *testing.F) {
	f.Add("131072", "65536", "2", "0", "65536", "65536", "65536", int64(70))
	f.Add("100000", "65536", "2", "0", "65536", "65536", "34464", int64(70))
	f.Add("9223372036854775807", "65536", "1", "9223372036854710272", "65535", "", "", int64(1))
	f.Add("131072", "65536", "-1", "65536", "65536", "65536", "65536", int64(1<<62))
	f.Fuzz(func(t *testing.T, size, chunkSize, chunks, offset1, size1, offset2, size2 string, packed int64) {
		raw := digest.FromString("raw")
		chunk := func(offset, size string) v1.Descriptor {
			return v1.Descriptor{MediaType: TypeChunk, Digest: raw, Size: packed, Annotations: map[string]string{ChunkOffset: offset, ChunkSize: size, ChunkDigest: raw.String()}}
		}
		text, err := json.Marshal(v1.Manifest{Config: v1.Descriptor{Digest: raw}, Layers: []v1.Descriptor{
			{MediaType: TypeDisk, Digest: raw, Size: 2, Annotations: map[string]string{DiskName: "a", DiskContent: "raw", DiskSize: size, DiskChunkSize: chunkSize, DiskChunks: chunks}},
			chunk(offset1, size1), chunk(offset2, size2),
		}})
		if err != nil {
			t.Fatal(err)
		}
		m, err := ParseManifest(text, "")
		if err != nil {
			return
		}
		p, err := DetectPlan(m, []byte("{}"))
		if err != nil {
			if !errors.Is(err, ErrUnknown) {
				t.Error(err)
			}
			return
		}
		end := int64(0)
		d := p.Disks[0]
		for _, s := range d.Streams {
			if s.Offset < end || s.Size <= 0 || s.Size > MaxChunkSize || s.Offset > d.Size-s.Size || s.Offset%ChunkUnit != 0 {
				t.Errorf("disk of %d bytes with the chunk %+v after %d", d.Size, s, end)
			}
			end = s.Offset + s.Size
		}
	})
}
