package store

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/ulikunitz/xz"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/internal/ocitest"
)

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
	content := ocitest.Noise(100_000)
	// Magic bytes, a descriptor without anything, a window of 2^31 bytes, and one
	// block, raw and the last, of one byte.
	huge := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, (31 - 10) << 3, 0x09, 0x00, 0x00, 'x'}
	tests := map[string]struct {
		packed []byte
		title  string
		want   error
	}{
		"xz of 4 GiB":   {xzAsking(t, content, 40), "disk.raw.xz", oci.ErrFormat},
		"xz of 2 GiB":   {xzAsking(t, content, 38), "disk.raw.xz", oci.ErrFormat},
		"xz of 8 MiB":   {xzAsking(t, content, 22), "disk.raw.xz", nil},
		"zstd of 2 GiB": {huge, "disk.raw.zst", oci.ErrFormat},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			l := ocitest.NewLayout(t)
			layer := l.Blob("x/y", test.packed)
			layer.Annotations = map[string]string{v1.AnnotationTitle: test.title}
			ref, store := l.Write(v1.Manifest{Layers: []v1.Descriptor{layer}}), newStore(t)
			var image *oci.Image
			var err error
			if n := ocitest.Allocating(func() { image, err = store.Pull(t.Context(), ref, PullOptions{}) }); n > 100<<20 {
				t.Errorf("%d MiB allocated", n>>20)
			}
			if !errors.Is(err, test.want) || test.want == nil && err != nil {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			if image != nil {
				ocitest.CheckContent(t, image, content)
			}
		})
	}
}

// TestSkippableFrames: what zstd skips is not content, and takes no time to speak of.
func TestSkippableFrames(t *testing.T) {
	t.Parallel()
	content := ocitest.Noise(100_000)
	packed := bytes.Repeat([]byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0}, 1<<19)
	packed = append(zstdOf(t, content), packed...)
	l := ocitest.NewLayout(t)
	layer := l.Blob("x/y", packed)
	layer.Annotations = map[string]string{v1.AnnotationTitle: "disk.raw.zst"}
	start := time.Now()
	image, err := newStore(t).Pull(t.Context(), l.Write(v1.Manifest{Layers: []v1.Descriptor{layer}}), PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ocitest.CheckContent(t, image, content)
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
}

// TestManyFiles: of very many files in /disk/ the first few are told.
func TestManyFiles(t *testing.T) {
	t.Parallel()
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
	l := ocitest.NewLayout(t)
	ref := l.Write(v1.Manifest{Config: l.Blob(v1.MediaTypeImageConfig, []byte(`{}`)), Layers: []v1.Descriptor{l.Blob(v1.MediaTypeImageLayerGzip, b.Bytes())}})
	start := time.Now()
	_, err = newStore(t).Pull(t.Context(), ref, PullOptions{})
	if !errors.Is(err, oci.ErrFormat) || !strings.Contains(err.Error(), "several files in /disk/") || len(err.Error()) > 2000 {
		t.Errorf("got %.2000v, want that there are several files", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

// TestImpossibleSize: more than any disk may have will not fit another time, either.
func TestImpossibleSize(t *testing.T) {
	t.Parallel()
	for name, layers := range map[string]func(l ocitest.TestLayout) []v1.Descriptor{
		"one": func(l ocitest.TestLayout) []v1.Descriptor {
			layer := l.Blob(ocitest.RawLayer, ocitest.Zipped(t, "disk.raw", []byte("a")))
			layer.Size = 1 << 62
			return []v1.Descriptor{layer}
		},
		"all": func(l ocitest.TestLayout) []v1.Descriptor {
			var layers []v1.Descriptor
			for i := range 4 {
				layer := l.Blob(ocitest.RawLayer, ocitest.Zipped(t, "disk.raw", []byte("a")))
				if layer.Size = 1<<63 - 1; i > 0 {
					layer.MediaType += fmt.Sprintf(";chunk=%d", i)
				}
				layers = append(layers, layer)
			}
			return layers
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := ocitest.NewLayout(t)
			if _, err := newStore(t).Pull(t.Context(), l.SardinecakeOf(layers(l)...), PullOptions{}); !errors.Is(err, oci.ErrInvalid) || !strings.Contains(err.Error(), "max_disk") {
				t.Errorf("got %v, want ErrInvalid and max_disk", err)
			}
		})
	}
}

// TestManyLayers: as many as a manifest of the size that registries accept can name.
func TestManyLayers(t *testing.T) {
	t.Parallel()
	l := ocitest.NewLayout(t)
	content := []byte("a")
	piece := l.Blob("x/y", nil)
	raw := ocitest.Zipped(t, "disk.raw", content)
	layers := []v1.Descriptor{l.Blob("application/vnd.libvirt.domain.config+xml", []byte("<domain/>")), l.Blob(ocitest.RawLayer, raw)}
	for i := 1; i < 12_500; i++ {
		piece.MediaType = fmt.Sprintf("%s;chunk=%d", ocitest.RawLayer, i)
		layers = append(layers, piece)
	}
	m := v1.Manifest{Config: l.Blob(v1.MediaTypeImageConfig, []byte(`{"architecture":"amd64","os":"linux"}`)), Layers: layers}
	start := time.Now()
	image, err := newStore(t).Pull(t.Context(), l.Write(m), PullOptions{})
	if err != nil && !errors.Is(err, oci.ErrFormat) {
		t.Fatalf("got %.500v, want an image or ErrFormat", err)
	}
	if err == nil {
		ocitest.CheckContent(t, image, content)
	}
	// A hundred thousand do not fit, whoever reads them.
	if _, err := format.Parse([]byte(`{"config":{"digest":"` + piece.Digest.String() + `"},"layers":[` + strings.Repeat(`{},`, 100_000) + `{}]}`)); err == nil || !strings.Contains(err.Error(), "100001 layers") {
		t.Errorf("got %.500v, want that there are too many layers", err)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("took %v", took)
	}
}
