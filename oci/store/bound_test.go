package store

import (
	"archive/tar"
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/internal/ocitest"
	"gitlab-sardine-executor/oci/transfer"
)

// bombed is how much follows the header of a bomb, in bytes: more than the file of a
// qcow2 disk of 1 MiB may have.
const bombed = 66 << 20

// packed compresses a file and size bytes behind it: noise that is repeated, so bytes that
// are not zero.
func packed(t *testing.T, how string, file []byte, size int) []byte {
	t.Helper()
	return packedWith(t, how, file, bytes.Repeat(ocitest.Noise(1<<10), 1<<10), size)
}

// zeroed compresses a file and size zeroes behind it, which take no room when unpacked.
func zeroed(t *testing.T, how string, file []byte, size int) []byte {
	t.Helper()
	return packedWith(t, how, file, make([]byte, 1<<20), size)
}

// packedWith compresses a file and size bytes behind it, which repeat a piece. The piece is
// compressed once.
func packedWith(t *testing.T, how string, file, piece []byte, size int) []byte {
	t.Helper()
	if size%len(piece) != 0 {
		t.Fatalf("%d bytes are not a multiple of %d", size, len(piece))
	}
	times := size / len(piece)
	switch how {
	case "gzip":
		return zippedWith(t, file, piece, times)
	case "zstd": // in frames
		return append(zstdOf(t, file), bytes.Repeat(zstdOf(t, piece), times)...)
	case "xz": // in streams
		return append(xzOf(t, file), bytes.Repeat(xzOf(t, piece), times)...)
	}
	return append(append(make([]byte, 0, len(file)+size), file...), bytes.Repeat(piece, times)...)
}

// zippedWith is a file and repeated pieces as gzip of one member.
func zippedWith(t *testing.T, file, piece []byte, times int) []byte {
	t.Helper()
	deflated := func(content []byte) (out *bytes.Buffer, z *flate.Writer) {
		out = new(bytes.Buffer)
		z, err := flate.NewWriter(out, flate.BestSpeed)
		if err != nil {
			t.Fatal(err)
		}
		_, err = z.Write(content)
		if err := errors.Join(err, z.Flush()); err != nil {
			t.Fatal(err)
		}
		return out, z
	}
	first, z := deflated(file)
	more, _ := deflated(piece)
	first.Write(bytes.Repeat(more.Bytes(), times))
	if err := z.Close(); err != nil { // an empty block, the last one
		t.Fatal(err)
	}
	sum := crc32.ChecksumIEEE(file)
	for range times {
		sum = crc32.Update(sum, crc32.IEEETable, piece)
	}
	member := append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}, first.Bytes()...)
	member = binary.LittleEndian.AppendUint32(member, sum)
	return binary.LittleEndian.AppendUint32(member, uint32(len(file)+times*len(piece)))
}

// tarBomb is a tar archive with one file, and so many zeroes behind its content, as zstd.
func tarBomb(t *testing.T, name string, file []byte, size int64) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o444, Size: int64(len(file)) + size, Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(w, io.MultiReader(bytes.NewReader(file), io.LimitReader(zeroes{}, size))); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// sparseTar lets GNU tar pack a file with a hole at its end.
func sparseTar(t *testing.T, how string, file []byte, size int64) []byte {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "disk", "a.img")
	err := errors.Join(os.Mkdir(filepath.Dir(path), 0o755), os.WriteFile(path, file, 0o644), os.Truncate(path, int64(len(file))+size))
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("tar", "-C", dir, "--format="+how, "--sparse", "-cf", "-", "disk").Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestBombs: a qcow2 disk is not larger than its own header explains, however it is
// packed, and whether what follows is zero or not.
func TestBombs(t *testing.T) {
	t.Parallel()
	disk := ocitest.Qcow2File(t)
	titled := func(l ocitest.TestLayout, content []byte, title string) oci.Reference {
		return l.Write(v1.Manifest{Layers: []v1.Descriptor{annotated(l.Blob("x/y", content), v1.AnnotationTitle, title)}})
	}
	cut := func(b []byte) (first, second []byte) { return b[:len(b)/2], b[len(b)/2:] }
	tests := map[string]func(l ocitest.TestLayout) oci.Reference{
		"gzip": func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(l.Blob(ocitest.Qcow2Layer, packed(t, "gzip", disk, bombed)))
		},
		"gzip, zeroes": func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(l.Blob(ocitest.Qcow2Layer, zeroed(t, "gzip", disk, bombed)))
		},
		"gzip, of several members": func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(l.Blob(ocitest.Qcow2Layer, append(ocitest.Zipped(t, "disk.qcow2", disk), zeroed(t, "gzip", nil, bombed)...)))
		},
		"gzip, in pieces": func(l ocitest.TestLayout) oci.Reference {
			first, second := cut(zeroed(t, "gzip", disk, bombed))
			return l.SardinecakeOf(l.Blob(ocitest.Qcow2Layer, first), l.Blob(ocitest.Qcow2Layer+";chunk=1", second))
		},
		"zstd": func(l ocitest.TestLayout) oci.Reference {
			return titled(l, zeroed(t, "zstd", disk, bombed), "disk.qcow2.zst")
		},
		"xz": func(l ocitest.TestLayout) oci.Reference {
			return titled(l, zeroed(t, "xz", disk, bombed), "disk.qcow2.xz")
		},
		"no packing": func(l ocitest.TestLayout) oci.Reference { return titled(l, zeroed(t, "", disk, bombed), "disk.img") },
		"top of a chain": func(l ocitest.TestLayout) oci.Reference {
			top := ocitest.Qcow2File(t, "-F", "qcow2", "-b", "base.qcow2")
			return l.SardinecakeOf(l.Blob(ocitest.Qcow2Layer, ocitest.Zipped(t, "base.qcow2", disk)), l.Blob(ocitest.Qcow2Layer, zeroed(t, "gzip", top, bombed)))
		},
		"chunked, by its size": func(l ocitest.TestLayout) oci.Reference {
			c := newChunkedImage(l, disk, format.ChunkUnit)
			c.disk.Annotations[format.DiskContent], c.disk.Annotations[format.DiskSize] = "qcow2", strconv.Itoa(bombed)
			last := len(c.chunks) - 1 // has to be whole
			c.chunks[last] = c.chunk(append(bytes.Clone(disk[last*format.ChunkUnit:]), make([]byte, format.ChunkUnit-len(disk)%format.ChunkUnit)...), last*format.ChunkUnit)
			return c.write()
		},
		"lume, in parts": func(l ocitest.TestLayout) oci.Reference {
			part := func(at int, content []byte) v1.Descriptor {
				return annotated(l.Blob("application/vnd.trycua.lume.disk.v1", content), "org.trycua.lume.part.offset", strconv.Itoa(at))
			}
			return l.Write(v1.Manifest{Config: l.Blob("application/vnd.trycua.lume.config.v1+json", []byte(`{"os":"linux"}`)),
				Layers: []v1.Descriptor{part(0, ocitest.Zipped(t, "", disk)), part(1<<20, zeroed(t, "gzip", nil, bombed))}})
		},
		"containerdisk": func(l ocitest.TestLayout) oci.Reference {
			return l.Named(l.Container("{}", tarBomb(t, "disk/a.img", disk, bombed)))
		},
		"containerdisk, sparse": func(l ocitest.TestLayout) oci.Reference {
			return l.Named(l.Container("{}", sparseTar(t, "gnu", disk, 100<<30)))
		},
		"containerdisk, sparse as in POSIX": func(l ocitest.TestLayout) oci.Reference {
			return l.Named(l.Container("{}", sparseTar(t, "posix", disk, 100<<30)))
		},
	}
	for name, image := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := newStore(t)
			_, err := store.Pull(t.Context(), image(ocitest.NewLayout(t)), PullOptions{Architecture: "amd64"})
			if !errors.Is(err, oci.ErrInvalid) || !strings.Contains(err.Error(), "virtual size of 1MiB") {
				t.Errorf("got %v, want ErrInvalid and the virtual size", err)
			}
			ocitest.AssertEmpty(t, filepath.Join(store.Root(), imagesDir))
		})
	}
}

// TestHonestDisks: what QEMU makes is never larger than the bound. (Twice 76 MiB are
// more than 76 MiB may have for metadata, so that the snapshot has to count.)
func TestHonestDisks(t *testing.T) {
	t.Parallel()
	for name, commands := range map[string][][]string{
		"full, smallest clusters": {
			{"qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512,refcount_bits=64", "d", "4M"}, {"qemu-io", "-f", "qcow2", "-c", "write -q 0 4M", "d"}},
		"full, largest clusters": {
			{"qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=2M,preallocation=falloc", "d", "8M"}},
		"with snapshots": {
			{"qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=falloc", "d", "76M"}, {"qemu-img", "snapshot", "-c", "one", "d"}, {"qemu-io", "-f", "qcow2", "-c", "write -q -P 0 0 76M", "d"}},
		"compressed": {
			{"qemu-img", "create", "-q", "-f", "qcow2", "s", "4M"}, {"qemu-io", "-f", "qcow2", "-c", "write -q 0 4M", "s"},
			{"qemu-img", "convert", "-q", "-c", "-O", "qcow2", "s", "d"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for _, c := range commands {
				ocitest.Command(t, dir, c[0], c[1:]...)
			}
			content, err := os.ReadFile(filepath.Join(dir, "d"))
			if err != nil {
				t.Fatal(err)
			}
			l := ocitest.NewLayout(t)
			layer := annotated(l.Blob("x/y", zstdOf(t, content)), v1.AnnotationTitle, "disk.qcow2.zst")
			image, err := newStore(t).Pull(t.Context(), l.Write(v1.Manifest{Layers: []v1.Descriptor{layer}}), PullOptions{})
			if err != nil {
				t.Fatal(err)
			}
			ocitest.CheckContent(t, image, content)
		})
	}
}

// TestNoDisk: an image whose only disk is none is refused for that; a disk that looks
// odd is not.
func TestNoDisk(t *testing.T) {
	t.Parallel()
	disk := ocitest.Qcow2File(t)
	page := []byte("<!DOCTYPE html>\n<html><body>Sign in</body></html>" + strings.Repeat("\n<p>…</p>", 1000))
	gpt := ocitest.With(512, "EFI PART")
	copy(gpt[:], "ustar and whatever")
	tests := map[string]struct {
		content []byte
		text    string // of the error; empty for a disk
	}{
		"empty":                                 {nil, "empty"},
		"a web page":                            {page[:40], "text: "},
		"a pointer of Git LFS":                  {[]byte("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"), "text: "},
		"a program":                             {ocitest.With(0, "\x7fELF\x02"), "ELF"},
		"gzip in gzip":                          {packed(t, "gzip", disk, 0), "gzip"},
		"zstd in gzip":                          {packed(t, "zstd", disk, 0), "zstd"},
		"xz in gzip":                            {packed(t, "xz", disk, 0), "xz"},
		"bzip2":                                 {ocitest.With(0, "BZh91AY&SY"), "bzip2"},
		"lz4":                                   {ocitest.With(0, "\x04\x22\x4d\x18"), "lz4"},
		"zip":                                   {ocitest.With(0, "PK\x03\x04"), "ZIP"},
		"tar":                                   {ocitest.TarOf(t, ocitest.TarEntry{Name: "disk.raw", Content: string(disk)}), "tar archive"},
		"VMDK":                                  {ocitest.With(0, "KDMV"), "VMware"},
		"VHDX":                                  {ocitest.With(0, "vhdxfile"), "Hyper-V"},
		"VDI":                                   {ocitest.With(64, "\x7f\x10\xda\xbe"), "VirtualBox"},
		"ISO":                                   {ocitest.Iso(false, -1), "ISO image"},
		"ISO with a boot sector":                {ocitest.Iso(true, -1), "ISO image"},
		"ISO with a partition":                  {ocitest.Iso(true, 0), "ISO image"},
		"a disk that was an ISO":                {ocitest.Iso(true, 2048), ""},
		"zeroes":                                {ocitest.With(0, ""), ""},
		"noise, such as an encrypted disk":      {ocitest.Noise(100 << 10), ""},
		"a file system":                         {ocitest.With(1080, "\x53\xef"), ""},
		"a partition table, and text before it": {gpt, ""},
		"a boot sector that begins like gzip":   {append(append([]byte("\x1f\x8b\x08"), make([]byte, 507)...), 0x55, 0xaa), ""},
		"less than a sector":                    {[]byte{0}, ""},
	}
	for name, test := range tests {
		for _, in := range []string{"gzip", "containerdisk", "chunks"} {
			t.Run(name+"/"+in, func(t *testing.T) {
				l := ocitest.NewLayout(t)
				var ref oci.Reference
				switch {
				case in == "gzip":
					ref = l.SardinecakeOf(l.Blob(ocitest.RawLayer, ocitest.Zipped(t, "disk.raw", test.content)))
				case in == "containerdisk":
					ref = l.Named(l.Container("{}", ocitest.TarOf(t, ocitest.TarEntry{Name: "disk/disk.raw", Content: string(test.content)})))
				case len(test.content) > 0:
					ref = newChunkedImage(l, test.content, format.ChunkUnit).write()
				default:
					return // such an image cannot be
				}
				store := newStore(t)
				image, err := store.Pull(t.Context(), ref, PullOptions{Architecture: "amd64"})
				if test.text == "" {
					if err != nil {
						t.Fatal(err)
					}
					ocitest.CheckContent(t, image, test.content)
					return
				}
				if !errors.Is(err, oci.ErrFormat) || !strings.Contains(err.Error(), test.text) {
					t.Errorf("got %v, want ErrFormat and %q", err, test.text)
				}
				ocitest.AssertEmpty(t, filepath.Join(store.Root(), imagesDir))
			})
		}
	}
	t.Run("a second disk, of text", func(t *testing.T) {
		l := ocitest.NewLayout(t)
		ref := l.SardinecakeOf(l.Blob(ocitest.Qcow2Layer, ocitest.Zipped(t, "disk.qcow2", disk)), l.Blob(ocitest.RawLayer, ocitest.Zipped(t, "data.raw", page)))
		if _, err := newStore(t).Pull(t.Context(), ref, PullOptions{}); err != nil {
			t.Error(err)
		}
	})
}

// TestRefusedAtOnce: what the manifest shows takes no layer, what the first bytes show
// not the rest, which here never comes.
func TestRefusedAtOnce(t *testing.T) {
	t.Parallel()
	page := []byte(strings.Repeat("<p>text</p>\n", 200_000))
	page = append(page, ocitest.Noise(5<<20)...)
	shadow := append(ocitest.Qcow2File(t, "-F", "raw", "-b", "/etc/shadow"), ocitest.Noise(5<<20)...)
	larger := append(ocitest.Qcow2File(t), ocitest.Noise(5<<20)...)
	binary.BigEndian.PutUint64(larger[24:], 1<<50)
	binary.BigEndian.PutUint32(larger[36:], 1<<21)
	bomb := append(zeroed(t, "gzip", ocitest.Qcow2File(t), 69<<20), ocitest.Noise(5<<20)...)
	// At most so much of a layer comes; 0: nothing is to be asked for.
	const some = 4 << 20
	layer := func(l ocitest.TestLayout, mediaType, name string, content []byte) v1.Descriptor {
		return l.Blob(mediaType, ocitest.Zipped(t, name, content))
	}
	tests := map[string]struct {
		image func(l ocitest.TestLayout) oci.Reference
		comes int64
		want  error
		text  string
	}{
		"ISO": {func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(layer(l, "application/x-iso9660-image+gzip", "a.iso", ocitest.Iso(false, -1)))
		}, 0, oci.ErrFormat, "an ISO image and no disk"},
		"ISO, diskimage": {func(l ocitest.TestLayout) oci.Reference {
			return l.Named(l.Put(v1.Manifest{ArtifactType: "application/vnd.diskimage.iso", Layers: []v1.Descriptor{l.Blob("x/y", ocitest.Iso(false, -1))}}))
		}, 0, oci.ErrFormat, "an ISO image and no disk"},
		"ISO, by its title": {func(l ocitest.TestLayout) oci.Reference {
			return l.Write(v1.Manifest{Layers: []v1.Descriptor{annotated(l.Blob("x/y", ocitest.Iso(false, -1)), v1.AnnotationTitle, "a.iso")}})
		}, 0, oci.ErrFormat, "no layer is a disk"},
		"name in the manifest": {func(l ocitest.TestLayout) oci.Reference {
			c := newChunkedImage(l, ocitest.Noise(1<<20), format.ChunkUnit)
			c.disk.Annotations[format.DiskName] = "a/.."
			return c.write()
		}, 0, oci.ErrInvalid, `"a/.."`},
		"size in the manifest": {func(l ocitest.TestLayout) oci.Reference {
			c := newChunkedImage(l, ocitest.Noise(1<<20), format.ChunkUnit)
			c.disk.Annotations[format.DiskSize] = strconv.Itoa(1 << 50)
			return c.write()
		}, 0, nil, ""}, // refused for its last chunk, or its size
		"text": {func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(layer(l, ocitest.RawLayer, "a.raw", page))
		}, some, oci.ErrFormat, "text"},
		"name in gzip": {func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(layer(l, ocitest.RawLayer, "a/..", ocitest.Noise(5<<20)))
		}, 1 << 20, oci.ErrInvalid, `"a/.."`}, // the next read ahead waits for more
		"qcow2 that is none": {func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(layer(l, ocitest.Qcow2Layer, "a.qcow2", ocitest.Noise(5<<20)))
		}, some, oci.ErrFormat, "the layer says qcow2"},
		"backing file": {func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(layer(l, ocitest.Qcow2Layer, "a.qcow2", shadow))
		}, some, oci.ErrInvalid, "/etc/shadow"},
		"max_disk": {func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(layer(l, ocitest.Qcow2Layer, "a.qcow2", larger))
		}, some, oci.ErrInvalid, "max_disk"},
		"bomb": {func(l ocitest.TestLayout) oci.Reference {
			return l.Write(v1.Manifest{Layers: []v1.Descriptor{annotated(l.Blob("x/y", bomb), v1.AnnotationTitle, "a.img")}})
		}, some, oci.ErrInvalid, "virtual size"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			f := ocitest.NewFaultyRegistry(t)
			from := test.image(ocitest.NewLayout(t))
			ref := ocitest.MustParse(t, f.Host+"/vms/image:1")
			if _, err := transfer.Push(t.Context(), from, ref, transfer.Options{}); err != nil {
				t.Fatal(err)
			}
			f.Sent.Store(0)
			cut := cutAfter(max(test.comes, 4096), 1000, true)
			f.Fail(func(w http.ResponseWriter, r *http.Request) bool { return cut(w, r) })
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			_, err := newStore(t).Pull(ctx, ref, PullOptions{Architecture: "amd64"})
			if ctx.Err() != nil || err == nil || !oci.IsPermanent(err) || test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %v, want %v and %q", err, test.want, test.text)
			}
			if sent := f.Sent.Load(); sent > test.comes+8192 {
				t.Errorf("%d bytes came", sent)
			}
		})
	}
}

// TestLeadingSkippableFrames: pzstd puts one before each of its frames, and others put
// one in front.
func TestLeadingSkippableFrames(t *testing.T) {
	t.Parallel()
	disk := ocitest.Qcow2File(t)
	skipped := append([]byte{0x5a, 0x2a, 0x4d, 0x18, 5, 0, 0, 0}, "hello"...)
	half := len(disk) / 2
	content := append(bytes.Clone(skipped), zstdOf(t, disk[:half])...)
	content = append(append(content, skipped...), zstdOf(t, disk[half:])...)
	for name, image := range map[string]func(l ocitest.TestLayout) oci.Reference{
		"artifact": func(l ocitest.TestLayout) oci.Reference {
			return l.Write(v1.Manifest{Layers: []v1.Descriptor{annotated(l.Blob("x/y", content), v1.AnnotationTitle, "disk.qcow2.zst")}})
		},
		"disk image": func(l ocitest.TestLayout) oci.Reference {
			return l.Named(l.Put(v1.Manifest{ArtifactType: "application/vnd.diskimage.qcow2", Layers: []v1.Descriptor{l.Blob("x/y", content)}}))
		},
		"containerdisk": func(l ocitest.TestLayout) oci.Reference {
			layer := append(bytes.Clone(skipped), zstdOf(t, ocitest.TarOf(t, ocitest.TarEntry{Name: "disk/a", Content: string(disk)}))...)
			return l.Named(l.Put(v1.Manifest{Config: l.Config("{}"), Layers: []v1.Descriptor{l.Blob(v1.MediaTypeImageLayerZstd, layer)}}))
		},
		"chunk": func(l ocitest.TestLayout) oci.Reference {
			c := newChunkedImage(l, disk, 4*format.ChunkUnit)
			annotations := c.chunks[0].Annotations
			c.chunks[0] = l.Blob(format.TypeChunk, append(bytes.Clone(skipped), zstdOf(t, disk[:min(len(disk), 4*format.ChunkUnit)])...))
			c.chunks[0].Annotations = annotations
			return c.write()
		},
	} {
		t.Run(name, func(t *testing.T) {
			image, err := newStore(t).Pull(t.Context(), image(ocitest.NewLayout(t)), PullOptions{Architecture: "amd64"})
			if err != nil {
				t.Fatal(err)
			}
			ocitest.CheckContent(t, image, disk)
		})
	}
	if _, err := exec.LookPath("pzstd"); err == nil {
		path := filepath.Join(t.TempDir(), "disk.qcow2")
		if err := os.WriteFile(path, disk, 0o644); err != nil {
			t.Fatal(err)
		}
		ocitest.Command(t, "", "pzstd", "-q", path)
		raw, err := os.ReadFile(path + ".zst")
		if err != nil {
			t.Fatal(err)
		}
		l := ocitest.NewLayout(t)
		image, err := newStore(t).Pull(t.Context(), l.Write(v1.Manifest{Layers: []v1.Descriptor{annotated(l.Blob("x/y", raw), v1.AnnotationTitle, "disk.qcow2.zst")}}), PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ocitest.CheckContent(t, image, disk)
	}
}

// TestEqualDuplicates: what is there twice and is the same is no riddle.
func TestEqualDuplicates(t *testing.T) {
	t.Parallel()
	base, top := ocitest.Qcow2File(t), ocitest.Qcow2File(t, "-F", "qcow2", "-b", "base.qcow2")
	other := append(bytes.Clone(base), 1)
	tests := map[string]struct {
		image func(l ocitest.TestLayout) oci.Reference
		disks string
		text  string
	}{
		"base of two disks, one name": {func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(l.Blob(ocitest.Qcow2Layer, ocitest.Zipped(t, "base.qcow2", base)), l.Blob(ocitest.Qcow2Layer, ocitest.Zipped(t, "a.qcow2", top)),
				l.Blob(ocitest.Qcow2Layer, ocitest.Zipped(t, "base.qcow2", base)), l.Blob(ocitest.Qcow2Layer, ocitest.Zipped(t, "b.qcow2", top)))
		}, "[base.qcow2: a.qcow2:base.qcow2 b.qcow2:base.qcow2]", ""},
		"base of two disks, renamed": {func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(l.Blob(ocitest.Qcow2Layer, ocitest.Zipped(t, "base.qcow2", base)), l.Blob(ocitest.Qcow2Layer, ocitest.Zipped(t, "a.qcow2", top)),
				l.Blob(ocitest.Qcow2Layer, ocitest.Zipped(t, "base-1.qcow2", base)), l.Blob(ocitest.Qcow2Layer, ocitest.Zipped(t, "b.qcow2", top)))
		}, "[base.qcow2: a.qcow2:base.qcow2 base-1.qcow2: b.qcow2:base.qcow2]", ""},
		"virter, a layer twice": {func(l ocitest.TestLayout) oci.Reference {
			id := digest.FromBytes(base)
			top := ocitest.Qcow2File(t, "-F", "qcow2", "-b", "./virter:layer:"+id.String())
			config := fmt.Sprintf(`{"architecture":"amd64","rootfs":{"diff_ids":["%s","%s","%s"]}}`, id, id, digest.FromBytes(top))
			const layer = "application/vnd.com.linbit.virter.layer.v1.qcow2.gzip"
			return l.Named(l.Put(v1.Manifest{Config: l.Blob("application/vnd.com.linbit.virter.image.v1", []byte(config)),
				Layers: []v1.Descriptor{l.Blob(layer, ocitest.Zipped(t, "", base)), l.Blob(layer, ocitest.Zipped(t, "", base)), l.Blob(layer, ocitest.Zipped(t, "", top))}}))
		}, "[layer-0.qcow2: layer-1.qcow2: layer-2.qcow2:layer-0.qcow2]", ""},
		"chunked": {func(l ocitest.TestLayout) oci.Reference {
			c := newChunkedImage(l, base, format.ChunkUnit)
			c.chunks = append(append(c.chunks, c.disk), c.chunks...)
			return c.write()
		}, "[disk.raw:]", ""},
		"artifact, a layer twice": {func(l ocitest.TestLayout) oci.Reference {
			layer := annotated(l.Blob("x/y", base), v1.AnnotationTitle, "disk.qcow2")
			return l.Write(v1.Manifest{Layers: []v1.Descriptor{layer, layer}})
		}, "[disk.qcow2:]", ""},
		"domain XML twice": {func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(l.Blob("application/vnd.libvirt.domain.config+xml", []byte("<domain/>")), l.Blob(ocitest.Qcow2Layer, ocitest.Zipped(t, "disk.qcow2", base)))
		}, "[disk.qcow2:]", ""},
		"one name, and not the same": {func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(l.Blob(ocitest.Qcow2Layer, ocitest.Zipped(t, "base.qcow2", base)), l.Blob(ocitest.Qcow2Layer, ocitest.Zipped(t, "base.qcow2", other)))
		}, "", "both called"},
		"two domain XMLs": {func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(l.Blob("application/vnd.libvirt.domain.config+xml", []byte("<domain></domain>")), l.Blob(ocitest.Qcow2Layer, ocitest.Zipped(t, "disk.qcow2", base)))
		}, "", "two layers"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			store, ref := newStore(t), test.image(ocitest.NewLayout(t))
			image, err := store.Pull(t.Context(), ref, PullOptions{})
			if test.text != "" {
				if !errors.Is(err, oci.ErrFormat) || !strings.Contains(err.Error(), test.text) {
					t.Errorf("got %v, want ErrFormat and %q", err, test.text)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var disks []string
			for _, d := range image.Disks {
				disks = append(disks, d.Name+":"+d.Backing)
				if _, err := os.Stat(filepath.Join(image.Dir, d.Name)); err != nil {
					t.Error(err)
				}
			}
			if got := fmt.Sprint(disks); got != test.disks {
				t.Errorf("disks %s, want %s", got, test.disks)
			}
			if left, _ := filepath.Glob(filepath.Join(image.Dir, ".*")); left != nil {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}
