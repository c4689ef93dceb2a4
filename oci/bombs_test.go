package oci

import (
	"archive/tar"
	"bytes"
	"compress/flate"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/image-spec/specs-go"
	"github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/ulikunitz/xz"

	"gitlab-sardine-executor/oci/format"
)

// allocating is how many bytes do allocates in all.
func allocating(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// xzAsking is content as xz whose block says that it needs a dictionary, as the
// properties of LZMA2 encode its size.
func xzAsking(t *testing.T, content []byte, size byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := xz.WriterConfig{DictCap: 64 << 10}.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	packed := b.Bytes()
	// Behind the header of the stream, 12 bytes, stands that of the block, with its
	// length and a checksum.
	block := packed[12 : 12+(int(packed[12])+1)*4]
	at := bytes.Index(block, []byte{0x21, 0x01}) // LZMA2, one byte of properties
	if at < 0 {
		t.Fatalf("no filter in % x", block)
	}
	block[at+2] = size
	sum := block[len(block)-4:]
	binary.LittleEndian.PutUint32(sum, crc32.ChecksumIEEE(block[:len(block)-4]))
	return packed
}

// TestHugeWindow: a header of a few bytes does not get gigabytes of memory.
func TestHugeWindow(t *testing.T) {
	content := noise(100_000)
	// Magic bytes, a descriptor without anything, a window of 2^31 bytes, and one
	// block, raw and the last, of one byte.
	huge := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, (31 - 10) << 3, 0x09, 0x00, 0x00, 'x'}
	tests := map[string]struct {
		packed []byte
		title  string
		want   error
	}{
		"xz of 4 GiB":   {xzAsking(t, content, 40), "disk.raw.xz", ErrFormat},
		"xz of 2 GiB":   {xzAsking(t, content, 38), "disk.raw.xz", ErrFormat},
		"xz of 8 MiB":   {xzAsking(t, content, 22), "disk.raw.xz", nil},
		"zstd of 2 GiB": {huge, "disk.raw.zst", ErrFormat},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			layer := l.blob("x/y", test.packed)
			layer.Annotations = map[string]string{v1.AnnotationTitle: test.title}
			ref, store := l.write(v1.Manifest{Layers: []v1.Descriptor{layer}}), newStore(t)
			var image *Image
			var err error
			if n := allocating(func() { image, err = store.Pull(t.Context(), ref, PullOptions{}) }); n > 100<<20 {
				t.Errorf("%d MiB allocated", n>>20)
			}
			if !errors.Is(err, test.want) || test.want == nil && err != nil {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			if image != nil {
				checkContent(t, image, content)
			}
		})
	}
}

// TestTinyPieces: compressed streams whose smallest parts follow each other, each
// with what a decompressor does for every new one.
func TestTinyPieces(t *testing.T) {
	const size = 4 << 20
	var empty bytes.Buffer
	if err := gzip.NewWriter(&empty).Close(); err != nil {
		t.Fatal(err)
	}
	members := bytes.Repeat(empty.Bytes(), size/empty.Len())
	var members2 int64
	n := allocating(func() {
		g, err := newGunzip(bytes.NewReader(members), nil)
		if err == nil {
			members2, err = io.Copy(io.Discard, g)
		}
		if err != nil {
			t.Error(err)
		}
	})
	if members2 != 0 || n > 16<<20 {
		t.Errorf("empty gzip members: %d bytes of content, %d MiB allocated", members2, n>>20)
	}

	// Empty blocks with the fixed code: 0, 01 and seven zeroes.
	var blocks bytes.Buffer
	blocks.Write(empty.Bytes()[:10])
	stream := make([]byte, size)
	for bit := 1; bit < 8*size-20; bit += 10 {
		stream[bit/8] |= 1 << (bit % 8)
	}
	blocks.Write(stream)
	took := func(open func() (io.Reader, error)) time.Duration {
		best := time.Hour
		for range 3 { // others want the processor, too
			start := time.Now()
			r, err := open()
			if err == nil {
				_, err = io.Copy(io.Discard, r)
			}
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("empty blocks: %v", err)
			}
			best = min(best, time.Since(start))
		}
		return best
	}
	ours := took(func() (io.Reader, error) { return newGunzip(bytes.NewReader(blocks.Bytes()), nil) })
	gos := took(func() (io.Reader, error) { return flate.NewReader(bytes.NewReader(stream)), nil })
	if ours > 10*gos {
		t.Errorf("empty blocks take %v, with Go's library %v", ours, gos)
	}
}

// TestSkippableFrames: what zstd skips is not content, and takes no time to speak of.
func TestSkippableFrames(t *testing.T) {
	content := noise(100_000)
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	packed := bytes.Repeat([]byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0}, 1<<19)
	packed = append(encoder.EncodeAll(content, nil), packed...)
	l := newLayout(t)
	layer := l.blob("x/y", packed)
	layer.Annotations = map[string]string{v1.AnnotationTitle: "disk.raw.zst"}
	start := time.Now()
	image, err := newStore(t).Pull(t.Context(), l.write(v1.Manifest{Layers: []v1.Descriptor{layer}}), PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	checkContent(t, image, content)
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
}

// TestManyFiles: of very many files in /disk/ the first few are told.
func TestManyFiles(t *testing.T) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	archive := tar.NewWriter(z)
	for i := range 100_000 {
		if err := archive.WriteHeader(&tar.Header{Name: fmt.Sprintf("disk/%060d", i), Typeflag: tar.TypeReg, Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(archive.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	l := newLayout(t)
	ref := l.write(v1.Manifest{Config: l.blob(v1.MediaTypeImageConfig, []byte(`{}`)), Layers: []v1.Descriptor{l.blob(v1.MediaTypeImageLayerGzip, b.Bytes())}})
	start := time.Now()
	_, err = newStore(t).Pull(t.Context(), ref, PullOptions{})
	if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "several files in /disk/") || len(err.Error()) > 2000 {
		t.Errorf("got %.2000v, want that there are several files", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

// TestImpossibleSize: more than any disk may have will not fit another time, either.
func TestImpossibleSize(t *testing.T) {
	for name, layers := range map[string]func(l testLayout) []v1.Descriptor{
		"one": func(l testLayout) []v1.Descriptor {
			layer := l.blob(rawLayer, zipped(t, "disk.raw", []byte("a")))
			layer.Size = 1 << 62
			return []v1.Descriptor{layer}
		},
		"all": func(l testLayout) []v1.Descriptor {
			var layers []v1.Descriptor
			for i := range 4 {
				layer := l.blob(rawLayer, zipped(t, "disk.raw", []byte("a")))
				if layer.Size = 1<<63 - 1; i > 0 {
					layer.MediaType += fmt.Sprintf(";chunk=%d", i)
				}
				layers = append(layers, layer)
			}
			return layers
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			if _, err := newStore(t).Pull(t.Context(), l.sardinecakeOf(layers(l)...), PullOptions{}); !errors.Is(err, ErrHostile) || !strings.Contains(err.Error(), "max_disk") {
				t.Errorf("got %v, want ErrHostile and max_disk", err)
			}
		})
	}
}

// TestManyLayers: as many as a manifest of the size that registries accept can name.
func TestManyLayers(t *testing.T) {
	l := newLayout(t)
	content := []byte("a")
	piece := l.blob("x/y", nil)
	raw := zipped(t, "disk.raw", content)
	layers := []v1.Descriptor{l.blob("application/vnd.libvirt.domain.config+xml", []byte("<domain/>")), l.blob(rawLayer, raw)}
	for i := 1; i < 25_000; i++ {
		piece.MediaType = fmt.Sprintf("%s;chunk=%d", rawLayer, i)
		layers = append(layers, piece)
	}
	m := v1.Manifest{Config: l.blob(v1.MediaTypeImageConfig, []byte(`{"architecture":"amd64","os":"linux"}`)), Layers: layers}
	start := time.Now()
	image, err := newStore(t).Pull(t.Context(), l.write(m), PullOptions{})
	if err != nil && !errors.Is(err, ErrFormat) {
		t.Fatalf("got %.500v, want an image or ErrFormat", err)
	}
	if err == nil {
		checkContent(t, image, content)
	}
	// A hundred thousand do not fit, whoever reads them.
	if _, err := format.Parse([]byte(`{"config":{"digest":"` + piece.Digest.String() + `"},"layers":[` + strings.Repeat(`{},`, 100_000) + `{}]}`)); err == nil || !strings.Contains(err.Error(), "100001 layers") {
		t.Errorf("got %.500v, want that there are too many layers", err)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("took %v", took)
	}
}

// put writes an index to a layout, as the only one.
func (l testLayout) index(children ...v1.Descriptor) Reference {
	l.t.Helper()
	raw, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: children})
	if err != nil {
		l.t.Fatal(err)
	}
	top, err := json.Marshal(v1.Index{Manifests: []v1.Descriptor{l.blob(v1.MediaTypeImageIndex, raw)}})
	if err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.dir, "index.json"), top, 0o644); err != nil {
		l.t.Fatal(err)
	}
	return mustParse(l.t, "oci:"+l.dir)
}

// manifest adds one with a layer of its own and those given.
func (l testLayout) manifest(content string, more ...v1.Descriptor) v1.Descriptor {
	l.t.Helper()
	raw, err := json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Config: l.blob(v1.MediaTypeEmptyJSON, []byte("{}")),
		Layers: append([]v1.Descriptor{l.blob("text/plain", []byte(content))}, more...),
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return l.blob(v1.MediaTypeImageManifest, raw)
}

// TestManifestAsLayer: what is a layer of one image and a manifest of another is
// copied as both, in whatever order they come, with all that it names.
func TestManifestAsLayer(t *testing.T) {
	for _, layerFirst := range []bool{true, false} {
		m := newMeddler(t)
		l := newLayout(t)
		inner := l.manifest("inner")
		asLayer := inner
		asLayer.MediaType = "application/octet-stream"
		children := []v1.Descriptor{l.manifest("outer", asLayer), inner}
		if !layerFirst {
			children[0], children[1] = children[1], children[0]
		}
		ref := mustParse(t, m.host+"/vms/index:1")
		if _, err := Push(t.Context(), l.index(children...), ref, TransferOptions{patience: impatient}); err != nil {
			t.Fatal(err)
		}
		layout := filepath.Join(t.TempDir(), "layout")
		if _, err := Fetch(t.Context(), ref, mustParse(t, "oci:"+layout), TransferOptions{patience: impatient}); err != nil {
			t.Fatal(err)
		}
		if want, got := strings.Join(blobNames(t, l.dir), "\n"), strings.Join(blobNames(t, layout), "\n"); want != got {
			t.Errorf("layer first: %v: the layout has\n%s\nwant\n%s", layerFirst, got, want)
		}
	}
}

// TestManyManifests: those of one image, which are kept in memory, are not without
// bounds.
func TestManyManifests(t *testing.T) {
	l := newLayout(t)
	var children []v1.Descriptor
	for i := range 17 {
		layer := l.blob("text/plain", nil)
		layer.Annotations = map[string]string{"x": strings.Repeat(string(rune('a'+i)), maxManifest-2000)}
		children = append(children, l.manifest("", layer))
	}
	m := newMeddler(t)
	_, err := Push(t.Context(), l.index(children...), mustParse(t, m.host+"/vms/index:1"), TransferOptions{patience: impatient})
	if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "67108864") {
		t.Errorf("got %v, want that the manifests are too large", err)
	}
}
