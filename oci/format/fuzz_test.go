package format

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
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
	for _, text := range []string{
		`{"manifests":[{"digest":"` + empty.String() + `","size":7,"platform":{"architecture":"amd64","os":"linux"}}]}`,
		`{"manifests":[],"layers":[],"config":{}}`,
		`{"mediaType":"application/vnd.oci.image.index.v1+json","layers":[]}`,
		`{"layer\u0073":[],"manifeſts":[]}`, `{"layers":[],"layers":[]}`, `{"layers":[]}{}`, `{"layers":[[[[[[[]]]]]]]}`,
	} {
		f.Add([]byte(text), []byte(`{"os":"linux","OS":"darwin"}`))
	}
	f.Fuzz(func(t *testing.T, raw, config []byte) {
		doc, err := Parse(raw)
		switch {
		case err != nil:
		case (doc.Index == nil) == (doc.Manifest == nil):
			t.Errorf("%+v", doc)
		case doc.Manifest != nil:
			var p *Plan
			if p, err = DetectPlan(doc.Manifest, config); err == nil {
				checkPlan(t, p)
			}
		}
		if err != nil && !errors.Is(err, errUnknown) && !errors.Is(err, ErrAmbiguous) {
			t.Error(err)
		}
	})
}

// FuzzOneReading compares with a parser that knows nothing of encoding/json's ways: it takes
// names as they are written, and the first of two. What Parse accepts, both read alike.
func FuzzOneReading(f *testing.F) {
	d := digest.FromString("")
	for _, text := range []string{
		`{"config":{"digest":"%[1]s"},"layers":[{"digest":"%[1]s","size":1,"annotations":{"a":"b","A":"c"}}]}`,
		`{"config":{"digest":"%[1]s"},"layers":[],"Layers":[{"digest":"%[1]s","size":1}]}`,
		`{"config":{"digest":"%[1]s"},"layers":[{"digest":"%[1]s","Size":1}]}`,
		`{"config":{"digest":"%[1]s"},"layers":[{"digest":"%[1]s","ſize":1}],"layerſ":[]}`,
		`{"config":{"digest":"%[1]s","digest":"sha256:x"},"layers":[]}`,
		`{"manifests":[{"digest":"%[1]s","size":3,"platform":{"os":"linux","OS":"x"}}]}`,
	} {
		f.Add(fmt.Appendf(nil, text, d))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		doc, err := Parse(raw)
		if err != nil {
			return
		}
		read, rest, err := readPlainly(json.NewDecoder(bytes.NewReader(raw)))
		if err != nil || rest {
			t.Fatalf("accepted, but %v", err)
		}
		object, ok := read.(map[string]any)
		if !ok {
			t.Fatalf("accepted %v", read)
		}
		if doc.Index != nil {
			sameDescriptors(t, object["manifests"], doc.Index.Manifests)
		} else {
			sameDescriptors(t, object["layers"], doc.Manifest.Layers)
			sameDescriptors(t, []any{object["config"]}, []v1.Descriptor{doc.Manifest.Config})
		}
	})
}

// readPlainly reads one value from the tokens of a document; rest is true if more follows.
func readPlainly(d *json.Decoder) (value any, rest bool, err error) {
	d.UseNumber()
	if value, err = plainValue(d); err != nil {
		return nil, false, err
	}
	_, err = d.Token()
	return value, err == nil, nil
}

func plainValue(d *json.Decoder) (any, error) {
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch token {
	case json.Delim('['):
		list := []any{}
		for d.More() {
			value, err := plainValue(d)
			if err != nil {
				return nil, err
			}
			list = append(list, value)
		}
		_, err = d.Token()
		return list, err
	case json.Delim('{'):
		object := map[string]any{}
		for d.More() {
			name, err := d.Token()
			if err != nil {
				return nil, err
			}
			value, err := plainValue(d)
			if err != nil {
				return nil, err
			}
			if _, ok := object[name.(string)]; !ok {
				object[name.(string)] = value
			}
		}
		_, err = d.Token()
		return object, err
	}
	return token, nil
}

func sameDescriptors(t *testing.T, plain any, read []v1.Descriptor) {
	t.Helper()
	list, _ := plain.([]any) // null is an empty list
	if len(list) != len(read) {
		t.Fatalf("%d descriptors, %d", len(list), len(read))
	}
	for i, entry := range list {
		object, _ := entry.(map[string]any)
		text := func(name string) string {
			switch value := object[name].(type) {
			case string:
				return value
			case json.Number:
				return value.String()
			}
			return ""
		}
		size, _ := strconv.ParseInt(text("size"), 10, 64)
		if text("digest") != read[i].Digest.String() || text("mediaType") != read[i].MediaType || size != read[i].Size {
			t.Errorf("read %+v, plainly %v", read[i], object)
		}
		annotations, _ := object["annotations"].(map[string]any)
		if len(annotations) != len(read[i].Annotations) {
			t.Errorf("annotations %v, plainly %v", read[i].Annotations, annotations)
		}
	}
}

// checkPlan: what is planned can be carried out.
func checkPlan(t *testing.T, p *Plan) {
	t.Helper()
	if len(p.Disks) == 0 || p.Format == "" || p.TransferSize() < 0 || p.UnpackedSize() < 0 {
		t.Errorf("plan %+v", p)
	}
	for _, d := range p.Disks {
		if (d.ContainerDisk == nil) == (len(d.Streams) == 0) && p.Format != Chunked {
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
		doc, err := Parse(text)
		if err != nil {
			return
		}
		p, err := DetectPlan(doc.Manifest, []byte("{}"))
		if err != nil {
			if !errors.Is(err, errUnknown) {
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
