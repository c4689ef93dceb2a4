package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/internal/ocitest"
	"gitlab-sardine-executor/oci/transport"
)

// annotated is a descriptor with annotations, given as keys and values.
func annotated(d v1.Descriptor, pairs ...string) v1.Descriptor {
	d.Annotations = map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		d.Annotations[pairs[i]] = pairs[i+1]
	}
	return d
}

// zstdEncoder is one for all tests: each takes megabytes.
var zstdEncoder = sync.OnceValues(func() (*zstd.Encoder, error) { return zstd.NewWriter(nil) })

func zstdOf(t *testing.T, content []byte) []byte {
	t.Helper()
	z, err := zstdEncoder()
	if err != nil {
		t.Fatal(err)
	}
	return z.EncodeAll(content, nil)
}

func xzOf(t *testing.T, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := xz.WriterConfig{DictCap: 1 << 20}.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// appleLZ4Of packs content as Apple's library does, in blocks of 64 KiB; a block
// that does not shrink is stored.
func appleLZ4Of(t *testing.T, content []byte) []byte {
	t.Helper()
	var out []byte
	var c lz4.Compressor
	for len(content) > 0 {
		raw := content[:min(64<<10, len(content))]
		content = content[len(raw):]
		packed := make([]byte, lz4.CompressBlockBound(len(raw)))
		n, err := c.CompressBlock(raw, packed)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 || n >= len(raw) {
			out = append(binary.LittleEndian.AppendUint32(append(out, "bv4-"...), uint32(len(raw))), raw...)
			continue
		}
		out = binary.LittleEndian.AppendUint32(append(out, "bv41"...), uint32(len(raw)))
		out = append(binary.LittleEndian.AppendUint32(out, uint32(n)), packed[:n]...)
	}
	return append(out, "bv4$"...)
}

func platform(d v1.Descriptor, os, arch string) v1.Descriptor {
	d.Platform = &v1.Platform{OS: os, Architecture: arch}
	return d
}

func artifact(d v1.Descriptor, artifactType string) v1.Descriptor {
	d.ArtifactType = artifactType
	return d
}

// virterImage is a chain of two layers, as virter writes it: a Docker manifest,
// and the digest of the base's content in the header of the other.
func virterImage(t *testing.T, l ocitest.TestLayout, base []byte) oci.Reference {
	t.Helper()
	baseID := digest.FromBytes(base)
	top := ocitest.Qcow2File(t, "-F", "qcow2", "-b", "./virter:layer:"+baseID.String())
	config := `{"architecture":"amd64","os":"","rootfs":{"type":"layers","diff_ids":["` + baseID.String() + `","` + digest.FromBytes(top).String() + `"]}}`
	const layer = "application/vnd.com.linbit.virter.layer.v1.qcow2.gzip"
	return l.Named(l.Put(v1.Manifest{
		MediaType: "application/vnd.docker.distribution.manifest.v2+json",
		Config:    l.Blob("application/vnd.com.linbit.virter.image.v1", []byte(config)),
		Layers:    []v1.Descriptor{l.Blob(layer, ocitest.Zipped(t, "", base)), l.Blob(layer, ocitest.Zipped(t, "", top))},
	}))
}

// TestFormats pulls an image of each format.
func TestFormats(t *testing.T) {
	t.Parallel()
	disk := ocitest.Qcow2File(t)
	raw := append([]byte("boot sector"), make([]byte, 300_000)...)
	raw = append(raw, ocitest.Noise(100_000)...)
	gzipLike := append(append(ocitest.Zipped(t, "", raw)[:510:510], 0x55, 0xaa), raw...)
	bootable := func(l ocitest.TestLayout) v1.Descriptor {
		return platform(l.Container(`{"architecture":"amd64","os":"linux","config":{"Labels":{"containers.bootc":"1"}}}`, ocitest.TarOf(t, ocitest.TarEntry{Name: "usr/"})), "linux", "amd64")
	}
	diskImage := func(l ocitest.TestLayout, kind string, content []byte) v1.Descriptor {
		return l.Put(v1.Manifest{ArtifactType: "application/vnd.diskimage." + kind, Layers: []v1.Descriptor{l.Blob("application/octet-stream", content)}})
	}
	tests := map[string]struct {
		image  func(l ocitest.TestLayout) oci.Reference
		format string
		disks  map[string]string // name: format
		want   []byte            // content of the last disk
	}{
		"virter": {func(l ocitest.TestLayout) oci.Reference { return virterImage(t, l, disk) }, "virter", map[string]string{"layer-0.qcow2": "qcow2", "layer-1.qcow2": "qcow2"}, nil},
		"kubevirt": {func(l ocitest.TestLayout) oci.Reference {
			return l.Named(l.Put(v1.Manifest{ArtifactType: "application/vnd.kubevirt.virtualmachine.v1", Layers: []v1.Descriptor{
				l.Blob("application/yaml", []byte("kind: VirtualMachine")),
				annotated(l.Blob("application/vnd.kubevirt.disk.raw+zstd", zstdOf(t, raw)), "io.kubevirt.disk.name", "root", "io.kubevirt.disk.size", "48Mi"),
			}}))
		}, "kubevirt", map[string]string{"root.raw": "raw"}, raw},
		"disk image artifact":                    {func(l ocitest.TestLayout) oci.Reference { return l.Named(diskImage(l, "qcow2", disk)) }, "diskimage", map[string]string{"disk.qcow2": "qcow2"}, disk},
		"disk image artifact, gzip that is none": {func(l ocitest.TestLayout) oci.Reference { return l.Named(diskImage(l, "qcow2.gzip", disk)) }, "diskimage", map[string]string{"disk.qcow2": "qcow2"}, disk},
		"disk image artifact, gzip": {func(l ocitest.TestLayout) oci.Reference {
			return l.Named(diskImage(l, "qcow2.gzip", ocitest.Zipped(t, "x", disk)))
		}, "diskimage", map[string]string{"disk.qcow2": "qcow2"}, disk},
		"disk image artifact, ordinary config": {func(l ocitest.TestLayout) oci.Reference {
			return l.Named(l.Put(v1.Manifest{ArtifactType: "application/vnd.diskimage.raw", Config: l.Config(`{"architecture":"amd64","os":"linux"}`), Layers: []v1.Descriptor{l.Blob("x/y", xzOf(t, raw))}}))
		}, "diskimage", map[string]string{"disk.raw": "raw"}, raw},
		"disk image in an index with the container": {func(l ocitest.TestLayout) oci.Reference {
			return l.Named(l.PutIndex(bootable(l),
				platform(artifact(diskImage(l, "raw", raw), "application/vnd.diskimage.raw"), "metal", "x86_64"),
				platform(artifact(diskImage(l, "qcow2", disk), "application/vnd.diskimage.qcow2"), "qemu", "x86_64")))
		}, "diskimage", map[string]string{"disk.qcow2": "qcow2"}, disk},
		"machine-os": {func(l ocitest.TestLayout) oci.Reference {
			machine := func(kind, arch string, content []byte) v1.Descriptor {
				d := l.Put(v1.Manifest{Layers: []v1.Descriptor{annotated(l.Blob("application/zstd", zstdOf(t, content)), v1.AnnotationTitle, "podman-machine."+arch+"."+kind+".qcow2.zst")}})
				return platform(annotated(d, "disktype", kind), "linux", arch)
			}
			return l.Named(l.PutIndex(bootable(l), machine("applehv", "x86_64", raw), machine("qemu", "aarch64", raw), machine("qemu", "x86_64", disk)))
		}, "artifact", map[string]string{"podman-machine.x86_64.qemu.qcow2": "qcow2"}, disk},
		"machine-os, xz, nested index": {func(l ocitest.TestLayout) oci.Reference {
			d := l.Put(v1.Manifest{Layers: []v1.Descriptor{annotated(l.Blob("application/xz", xzOf(t, disk)), v1.AnnotationTitle, "m.qcow2.xz")}})
			nested := l.PutIndex(platform(annotated(d, "disktype", "qemu"), "linux", "amd64"))
			return l.Named(l.PutIndex(annotated(bootable(l), "vnd.docker.reference.type", "attestation-manifest"), nested))
		}, "artifact", map[string]string{"m.qcow2": "qcow2"}, disk},
		"eve": {func(l ocitest.TestLayout) oci.Reference {
			return l.Named(l.Put(v1.Manifest{Config: l.Config(`{"architecture":"amd64","os":"linux"}`), Layers: []v1.Descriptor{
				annotated(l.Blob("application/vnd.lfedge.eci.kernel.layer.v1", []byte("kernel")), "org.lfedge.eci.role", "kernel"),
				annotated(l.Blob("application/vnd.lfedge.disk.layer.v1+qcow2", disk), "org.lfedge.eci.role", "disk-root", v1.AnnotationTitle, "root.qcow2"),
			}}))
		}, "eve", map[string]string{"root.qcow2": "qcow2"}, disk},
		"eve, raw that begins with gzip's magic bytes": {func(l ocitest.TestLayout) oci.Reference {
			return l.Named(l.Put(v1.Manifest{Config: l.Config(`{}`), Layers: []v1.Descriptor{
				annotated(l.Blob("application/vnd.lfedge.disk.layer.v1+raw", gzipLike), "org.lfedge.eci.role", "disk-root")}}))
		}, "eve", map[string]string{"disk-0": "raw"}, gzipLike},
		"eve, legacy": {func(l ocitest.TestLayout) oci.Reference {
			return l.Named(l.Container(`{"config":{"Labels":{"org.lfedge.eci.artifact.root":"/images/root.img"}}}`,
				ocitest.TarOf(t, ocitest.TarEntry{Name: "images/"}, ocitest.TarEntry{Name: "images/root.img", Content: string(disk)}, ocitest.TarEntry{Name: "images/other", Content: "x"})))
		}, "eve", map[string]string{"root.img": "qcow2"}, disk},
		"tart": {func(l ocitest.TestLayout) oci.Reference {
			slice := func(content []byte) v1.Descriptor {
				return annotated(l.Blob("application/vnd.cirruslabs.tart.disk.v2", appleLZ4Of(t, content)),
					"org.cirruslabs.tart.uncompressed-size", strconv.Itoa(len(content)), "org.cirruslabs.tart.uncompressed-content-digest", digest.FromBytes(content).String())
			}
			return l.Named(l.Put(v1.Manifest{Config: l.Config(`{"architecture":"arm64","os":"linux","config":{"Labels":{"org.cirruslabs.tart.disk.format":"raw"}}}`), Layers: []v1.Descriptor{
				l.Blob("application/vnd.cirruslabs.tart.config.v1", []byte(`{"os":"linux"}`)),
				slice(raw[:200_704]), slice(raw[200_704:]),
				l.Blob("application/vnd.cirruslabs.tart.nvram.v1", []byte("nvram")),
			}}))
		}, "tart", map[string]string{"disk.img": "raw"}, raw},
		"lume": {func(l ocitest.TestLayout) oci.Reference {
			part := func(at int, content []byte) v1.Descriptor {
				return annotated(l.Blob("application/vnd.trycua.lume.disk.v1", ocitest.Zipped(t, "", content)), "org.trycua.lume.part.offset", strconv.Itoa(at), v1.AnnotationTitle, "disk.img")
			}
			return l.Named(l.Put(v1.Manifest{Config: l.Blob("application/vnd.trycua.lume.config.v1+json", []byte(`{"os":"linux"}`)),
				Layers: []v1.Descriptor{part(200_704, raw[200_704:]), part(0, raw[:200_704])}}))
		}, "lume", map[string]string{"disk.img": "raw"}, raw},
		"cua": {func(l ocitest.TestLayout) oci.Reference {
			return l.Named(l.Put(v1.Manifest{Config: l.Blob("application/vnd.trycua.qemu.config.v1+json", []byte(`{}`)),
				Layers: []v1.Descriptor{annotated(l.Blob("application/vnd.trycua.qemu.disk.v1+gzip", ocitest.Zipped(t, "", disk)), v1.AnnotationTitle, "disk.img")}}))
		}, "lume", map[string]string{"disk.img": "qcow2"}, disk},
		"oras without a type": {func(l ocitest.TestLayout) oci.Reference {
			return l.Named(l.Put(v1.Manifest{Config: l.Blob("application/vnd.unknown.config.v1+json", []byte("{}")), Layers: []v1.Descriptor{annotated(l.Blob(v1.MediaTypeImageLayer, disk), v1.AnnotationTitle, "vm.qcow2")}}))
		}, "artifact", map[string]string{"vm.qcow2": "qcow2"}, disk},
		"containerdisk": {func(l ocitest.TestLayout) oci.Reference {
			return l.Named(l.Container(`{"architecture":"amd64","os":"linux"}`, ocitest.TarOf(t, ocitest.TarEntry{Name: "disk/"}, ocitest.TarEntry{Name: "disk/fedora.img", Content: string(disk)})))
		}, "containerdisk", map[string]string{"fedora.img": "qcow2"}, disk},
		"containerdisk, raw, ./ and gzip, by platform": {func(l ocitest.TestLayout) oci.Reference {
			d := l.Put(v1.Manifest{Config: l.Config(`{"architecture":"amd64","os":"linux"}`), Layers: []v1.Descriptor{
				l.Blob(v1.MediaTypeImageLayerGzip, ocitest.Zipped(t, "", ocitest.TarOf(t, ocitest.TarEntry{Name: "./etc/passwd", Content: "root"}))),
				l.Blob(v1.MediaTypeImageLayerZstd, zstdOf(t, ocitest.TarOf(t, ocitest.TarEntry{Name: "./disk/x", Content: string(raw)}))),
			}})
			return l.Named(l.PutIndex(platform(l.Container("{}", ocitest.TarOf(t)), "linux", "s390x"), platform(d, "linux", "amd64")))
		}, "containerdisk", map[string]string{"x": "raw"}, raw},
		"containerdisk, absolute, whited out": {func(l ocitest.TestLayout) oci.Reference {
			return l.Named(l.Container("{}",
				ocitest.TarOf(t, ocitest.TarEntry{Name: "disk/old.img", Content: "old"}, ocitest.TarEntry{Name: "disk/older.img", Content: "older"}),
				ocitest.TarOf(t, ocitest.TarEntry{Name: "disk/.wh.old.img"}, ocitest.TarEntry{Name: "disk/.wh.older.img"}, ocitest.TarEntry{Name: "/disk/new.img", Content: string(disk)})))
		}, "containerdisk", map[string]string{"new.img": "qcow2"}, disk},
		"containerdisk, replaced": {func(l ocitest.TestLayout) oci.Reference {
			return l.Named(l.Container("{}", ocitest.TarOf(t, ocitest.TarEntry{Name: "disk/a.img", Content: "old"}), ocitest.TarOf(t, ocitest.TarEntry{Name: "disk/a.img", Content: string(disk)}), ocitest.TarOf(t, ocitest.TarEntry{Name: "etc/x", Content: "x"})))
		}, "containerdisk", map[string]string{"a.img": "qcow2"}, disk},
		"containerdisk, opaque": {func(l ocitest.TestLayout) oci.Reference {
			return l.Named(l.Container("{}", ocitest.TarOf(t, ocitest.TarEntry{Name: "disk/a.img", Content: "old"}), ocitest.TarOf(t, ocitest.TarEntry{Name: "disk/b.img", Content: string(disk)}, ocitest.TarEntry{Name: "disk/.wh..wh..opq"})))
		}, "containerdisk", map[string]string{"b.img": "qcow2"}, disk},
		"containerdisk, directory whited out": {func(l ocitest.TestLayout) oci.Reference {
			return l.Named(l.Container("{}", ocitest.TarOf(t, ocitest.TarEntry{Name: "disk/a.img", Content: "old"}), ocitest.TarOf(t, ocitest.TarEntry{Name: ".wh.disk"}), ocitest.TarOf(t, ocitest.TarEntry{Name: "disk/b.img", Content: string(disk)})))
		}, "containerdisk", map[string]string{"b.img": "qcow2"}, disk},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			arch := "amd64"
			image, err := newStore(t).Pull(t.Context(), test.image(ocitest.NewLayout(t)), PullOptions{Architecture: arch})
			if err != nil {
				t.Fatal(err)
			}
			if image.Format != test.format || len(image.Disks) != len(test.disks) {
				t.Errorf("image %+v, want format %s", image, test.format)
			}
			for _, d := range image.Disks {
				if test.disks[d.Name] != d.Format {
					t.Errorf("disk %+v, want one of %v", d, test.disks)
				}
			}
			last := image.Disks[len(image.Disks)-1]
			got, err := os.ReadFile(filepath.Join(image.Dir, last.Name))
			if err != nil || test.want != nil && !bytes.Equal(got, test.want) {
				t.Errorf("%s: content differs (%v): %d bytes, want %d", last.Name, err, len(got), len(test.want))
			}
			if test.format == "virter" && last.Backing != "layer-0.qcow2" {
				t.Errorf("backing file %q", last.Backing)
			}
			if test.format != "virter" && last.Digest != digest.FromBytes(got) && test.format != "tart" {
				t.Errorf("%s: digest %s", last.Name, last.Digest)
			}
		})
	}
}

func TestFormatsRefused(t *testing.T) {
	t.Parallel()
	disk := ocitest.Qcow2File(t)
	tests := map[string]struct {
		image func(l ocitest.TestLayout) v1.Descriptor
		want  error
		text  string
	}{
		"bootc": {func(l ocitest.TestLayout) v1.Descriptor {
			return l.Container(`{"config":{"Labels":{"containers.bootc":"1"}}}`, ocitest.TarOf(t))
		}, oci.ErrFormat, "containers.bootc"},
		"ostree": {func(l ocitest.TestLayout) v1.Descriptor {
			return l.Container(`{"config":{"Labels":{"ostree.bootable":"1"}}}`, ocitest.TarOf(t))
		}, oci.ErrFormat, "ostree.bootable"},
		"unikraft": {func(l ocitest.TestLayout) v1.Descriptor {
			return l.Put(v1.Manifest{Annotations: map[string]string{"org.unikraft.image.version": "1"}, Layers: []v1.Descriptor{l.Blob("x/y", disk)}})
		}, oci.ErrFormat, "Unikraft"},
		"kraftkit": {func(l ocitest.TestLayout) v1.Descriptor {
			return l.Container(`{"os":"qemu","architecture":"x86_64"}`, ocitest.TarOf(t))
		}, oci.ErrFormat, "kraftkit"},
		"tart for macOS": {func(l ocitest.TestLayout) v1.Descriptor {
			return l.Put(v1.Manifest{Config: l.Config(`{"os":"darwin","architecture":"arm64"}`), Layers: []v1.Descriptor{l.Blob("application/vnd.cirruslabs.tart.config.v1", []byte("{}"))}})
		}, oci.ErrFormat, "macOS"},
		"tart asif": {func(l ocitest.TestLayout) v1.Descriptor {
			return l.Put(v1.Manifest{Config: l.Config(`{"os":"linux","config":{"Labels":{"org.cirruslabs.tart.disk.format":"asif"}}}`), Layers: []v1.Descriptor{l.Blob("application/vnd.cirruslabs.tart.config.v1", []byte("{}"))}})
		}, oci.ErrFormat, "asif"},
		"tart with a wrong digest": {func(l ocitest.TestLayout) v1.Descriptor {
			return l.Put(v1.Manifest{Config: l.Config(`{"os":"linux"}`), Layers: []v1.Descriptor{l.Blob("application/vnd.cirruslabs.tart.config.v1", []byte("{}")),
				annotated(l.Blob("application/vnd.cirruslabs.tart.disk.v2", appleLZ4Of(t, ocitest.With(510, "\x55\xaa"))), "org.cirruslabs.tart.uncompressed-size", strconv.Itoa(100<<10), "org.cirruslabs.tart.uncompressed-content-digest", digest.FromString("").String())}})
		}, oci.ErrInvalid, "has digest"},
		"lume for macOS": {func(l ocitest.TestLayout) v1.Descriptor {
			return l.Put(v1.Manifest{Config: l.Blob("application/vnd.trycua.lume.config.v1+json", []byte(`{"os":"macOS"}`)), Layers: []v1.Descriptor{l.Blob("application/vnd.trycua.lume.disk.v1", ocitest.Zipped(t, "", disk))}})
		}, oci.ErrFormat, "macOS"},
		"lume, overlapping parts": {func(l ocitest.TestLayout) v1.Descriptor {
			part := func(at string) v1.Descriptor {
				return annotated(l.Blob("application/vnd.trycua.lume.disk.v1", ocitest.Zipped(t, "", disk)), "org.trycua.lume.part.offset", at)
			}
			return l.Put(v1.Manifest{Config: l.Blob("application/vnd.trycua.lume.config.v1+json", []byte(`{}`)), Layers: []v1.Descriptor{part("0"), part("4096")}})
		}, oci.ErrInvalid, "unpacks to more"},
		"vmdk": {func(l ocitest.TestLayout) v1.Descriptor {
			return l.Put(v1.Manifest{ArtifactType: "application/vnd.diskimage.vmdk", Layers: []v1.Descriptor{l.Blob("x/y", disk)}})
		}, oci.ErrFormat, "vmdk"},
		"machine for another hypervisor": {func(l ocitest.TestLayout) v1.Descriptor {
			return l.PutIndex(annotated(l.Put(v1.Manifest{Layers: []v1.Descriptor{l.Blob("x/y", disk)}}), "disktype", "wsl"))
		}, oci.ErrFormat, "disktype wsl"},
		"another architecture": {func(l ocitest.TestLayout) v1.Descriptor {
			return l.PutIndex(platform(l.Put(v1.Manifest{Layers: []v1.Descriptor{l.Blob("x/y", disk)}}), "linux", "riscv64"))
		}, oci.ErrFormat, "linux/riscv64"},
		"indexes without end": {func(l ocitest.TestLayout) v1.Descriptor {
			d := l.Put(v1.Manifest{Layers: []v1.Descriptor{l.Blob("x/y", disk)}})
			for range transport.MaxIndexDepth + 1 {
				d = l.PutIndex(d)
			}
			return d
		}, oci.ErrFormat, "nest deeper"},
		"index that names itself": {func(l ocitest.TestLayout) v1.Descriptor {
			return l.PutIndex(v1.Descriptor{MediaType: v1.MediaTypeImageIndex, Digest: digest.FromString("no such")})
		}, oci.ErrNotFound, ""},
		"empty index": {func(l ocitest.TestLayout) v1.Descriptor { return l.PutIndex() }, oci.ErrFormat, "nothing for"},
		"manifest of an unknown type": {func(l ocitest.TestLayout) v1.Descriptor {
			return l.Put(v1.Manifest{MediaType: "application/vnd.example+json"})
		}, oci.ErrFormat, "vnd.example"},
		"containerdisk with two files": {func(l ocitest.TestLayout) v1.Descriptor {
			return l.Container("{}", ocitest.TarOf(t, ocitest.TarEntry{Name: "disk/a", Content: "a"}, ocitest.TarEntry{Name: "disk/b", Content: "b"}))
		}, oci.ErrFormat, `["a" "b"]`},
		"containerdisk with two files in two layers": {func(l ocitest.TestLayout) v1.Descriptor {
			return l.Container("{}", ocitest.TarOf(t, ocitest.TarEntry{Name: "disk/a", Content: "a"}), ocitest.TarOf(t, ocitest.TarEntry{Name: "disk/b", Content: "b"}))
		}, oci.ErrFormat, "several files"},
		"containerdisk that is a link": {func(l ocitest.TestLayout) v1.Descriptor {
			return l.Container("{}", ocitest.TarOf(t, ocitest.TarEntry{Name: "disk/a", Link: "/etc/shadow"}))
		}, oci.ErrFormat, "no file /etc/shadow"},
		"containerdisk in a link": {func(l ocitest.TestLayout) v1.Descriptor {
			return l.Container("{}", ocitest.TarOf(t, ocitest.TarEntry{Name: "disk", Link: "/etc"}, ocitest.TarEntry{Name: "disk/shadow", Content: "x"}))
		}, oci.ErrFormat, "not a directory"},
		"container without a disk": {func(l ocitest.TestLayout) v1.Descriptor {
			return l.Container("{}", ocitest.TarOf(t, ocitest.TarEntry{Name: "etc/passwd", Content: "root"}, ocitest.TarEntry{Name: "disk/sub/a", Content: "a"}))
		}, oci.ErrFormat, "container image without a file in /disk/"},
		"container with a bomb": {func(l ocitest.TestLayout) v1.Descriptor {
			return l.Put(v1.Manifest{Config: l.Config("{}"), Layers: []v1.Descriptor{l.Blob(v1.MediaTypeImageLayerZstd, tarBomb(t, "x", nil, 84<<20))}})
		}, oci.ErrInvalid, "too much content beside the disk"},
		"container that is no tar": {func(l ocitest.TestLayout) v1.Descriptor { return l.Container("{}", ocitest.Noise(5000)) }, oci.ErrFormat, "damaged layer"},
		"container cut off": {func(l ocitest.TestLayout) v1.Descriptor {
			return l.Container("{}", ocitest.TarOf(t, ocitest.TarEntry{Name: "disk/a", Content: string(ocitest.Noise(5000))})[:2000])
		}, oci.ErrFormat, "damaged layer"},
		"virter without diff ids": {func(l ocitest.TestLayout) v1.Descriptor {
			return l.Put(v1.Manifest{Config: l.Blob("application/vnd.com.linbit.virter.image.v1", []byte("{}")), Layers: []v1.Descriptor{l.Blob("application/vnd.com.linbit.virter.layer.v1.qcow2.gzip", ocitest.Zipped(t, "", disk))}})
		}, oci.ErrFormat, "diff ids"},
		"kubevirt without a disk": {func(l ocitest.TestLayout) v1.Descriptor {
			return l.Put(v1.Manifest{ArtifactType: "application/vnd.kubevirt.virtualmachine.v1"})
		}, oci.ErrFormat, "without a layer"},
		"truncated zstd": {func(l ocitest.TestLayout) v1.Descriptor {
			z := zstdOf(t, ocitest.Noise(100_000))
			return l.Put(v1.Manifest{ArtifactType: "application/vnd.kubevirt.virtualmachine.v1", Layers: []v1.Descriptor{annotated(l.Blob("application/vnd.kubevirt.disk.raw+zstd", z[:len(z)/2]), "io.kubevirt.disk.name", "root")}})
		}, oci.ErrFormat, "damaged layer"},
		"truncated xz": {func(l ocitest.TestLayout) v1.Descriptor {
			x := xzOf(t, disk)
			return l.Put(v1.Manifest{Layers: []v1.Descriptor{annotated(l.Blob("x/y", x[:len(x)/2]), v1.AnnotationTitle, "a.qcow2.xz")}})
		}, oci.ErrFormat, "damaged layer"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			l := ocitest.NewLayout(t)
			store := newStore(t)
			image, err := store.Pull(t.Context(), l.Named(test.image(l)), PullOptions{Architecture: "amd64", MaxDisk: 16 << 20})
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
				t.Fatalf("got %+v, %v; want %v with %q", image, err, test.want, test.text)
			}
			ocitest.AssertEmpty(t, filepath.Join(store.Root(), imagesDir))
		})
	}
}
