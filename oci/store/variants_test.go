package store

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/internal/ocitest"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// A variant is an image of a known format, as some publishers make it.
type variant struct {
	image func(t *testing.T, l ocitest.TestLayout) v1.Descriptor
	// want is the name of the disk, with the content of the test; or part of the error of an
	// image that is refused.
	want string
}

// containerOf makes a container image of layers.
func containerOf(layers ...[]ocitest.TarEntry) func(*testing.T, ocitest.TestLayout) v1.Descriptor {
	return func(t *testing.T, l ocitest.TestLayout) v1.Descriptor {
		var packed [][]byte
		for _, entries := range layers {
			packed = append(packed, ocitest.TarOf(t, entries...))
		}
		return l.Container(`{"architecture":"amd64","os":"linux"}`, packed...)
	}
}

// pushed makes an artifact of one layer with a title.
func pushed(mediaType, title string, content []byte, pairs ...string) func(*testing.T, ocitest.TestLayout) v1.Descriptor {
	return func(t *testing.T, l ocitest.TestLayout) v1.Descriptor {
		return l.Put(v1.Manifest{Layers: []v1.Descriptor{annotated(l.Blob(mediaType, content), append(pairs, v1.AnnotationTitle, title)...)}})
	}
}

func bzip2Of(t *testing.T, content []byte) []byte {
	t.Helper()
	cmd := exec.Command("bzip2", "-c")
	cmd.Stdin = strings.NewReader(string(content))
	packed, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return packed
}

// folder makes an artifact of a directory, as `oras push` does.
func folder(title string, entries ...ocitest.TarEntry) func(*testing.T, ocitest.TestLayout) v1.Descriptor {
	return func(t *testing.T, l ocitest.TestLayout) v1.Descriptor {
		return pushed(v1.MediaTypeImageLayerGzip, title, ocitest.Zipped(t, "", ocitest.TarOf(t, entries...)), "io.deis.oras.content.unpack", "true")(t, l)
	}
}

// bootc makes a bootable container image.
func bootc(t *testing.T, l ocitest.TestLayout) v1.Descriptor {
	return l.Container(`{"architecture":"amd64","os":"linux","config":{"Labels":{"containers.bootc":"1"}}}`, ocitest.TarOf(t, ocitest.TarEntry{Name: "usr/"}))
}

// machineOS makes an index as podman's, with disks of some types for amd64.
func machineOS(diskTypes ...string) func(*testing.T, ocitest.TestLayout) v1.Descriptor {
	return func(t *testing.T, l ocitest.TestLayout) v1.Descriptor {
		children := []v1.Descriptor{platform(bootc(t, l), "linux", "amd64")}
		for _, kind := range diskTypes {
			d := l.Put(v1.Manifest{Layers: []v1.Descriptor{annotated(l.Blob("application/zstd", []byte(kind)), v1.AnnotationTitle, "m."+kind+".vhdx.zst")}})
			children = append(children, platform(annotated(d, "disktype", kind), "linux", "x86_64"))
		}
		return l.PutIndex(children...)
	}
}

func pullVariant(t *testing.T, v variant) (*Store, *oci.Image, error) {
	t.Helper()
	l, store := ocitest.NewLayout(t), newStore(t)
	image, err := store.Pull(t.Context(), l.Named(v.image(t, l)), PullOptions{Architecture: "amd64", MaxDisk: 16 << 20})
	return store, image, err
}

// TestVariants pulls what publishers make of the formats.
func TestVariants(t *testing.T) {
	t.Parallel()
	qcow2 := ocitest.Qcow2File(t)
	raw := append(ocitest.Noise(510), 0x55, 0xaa)
	raw = append(raw, ocitest.Noise(50_000)...)
	file := func(name string) ocitest.TarEntry { return ocitest.TarEntry{Name: name, Content: string(qcow2)} }
	link := func(name, target string) ocitest.TarEntry { return ocitest.TarEntry{Name: name, Link: target} }
	hard := func(name, target string) ocitest.TarEntry {
		return ocitest.TarEntry{Name: name, Link: target, Hard: true}
	}
	type layer = []ocitest.TarEntry
	tests := map[string]variant{
		"containerdisk, symbolic link":                   {containerOf(layer{file("images/f.qcow2"), link("disk/disk.img", "../images/f.qcow2")}), "f.qcow2"},
		"containerdisk, absolute link":                   {containerOf(layer{link("disk/disk.img", "/images/f.qcow2"), file("images/f.qcow2")}), "f.qcow2"},
		"containerdisk, link to a lower layer":           {containerOf(layer{file("images/f.qcow2")}, layer{link("disk/disk.img", "/images/f.qcow2")}), "f.qcow2"},
		"containerdisk, link to an upper layer":          {containerOf(layer{link("disk/disk.img", "/images/f.qcow2")}, layer{file("images/f.qcow2")}), "f.qcow2"},
		"containerdisk, link over links":                 {containerOf(layer{file("i/f.qcow2"), link("i/latest", "f.qcow2"), link("disk/disk.img", "/i/latest")}), "f.qcow2"},
		"containerdisk, link beside the disk":            {containerOf(layer{file("disk/f.qcow2"), link("disk/disk.img", "f.qcow2"), link("disk/latest", "disk.img")}), "f.qcow2"},
		"containerdisk, link in an upper layer":          {containerOf(layer{file("disk/f.qcow2")}, layer{link("disk/disk.img", "f.qcow2")}), "f.qcow2"},
		"containerdisk, whited out link":                 {containerOf(layer{file("f.qcow2"), link("disk/gone", "/nowhere")}, layer{{Name: "disk/.wh.gone"}, file("disk/g.qcow2")}), "g.qcow2"},
		"containerdisk, hard link":                       {containerOf(layer{file("images/f.qcow2"), hard("disk/disk.img", "images/f.qcow2")}), "f.qcow2"},
		"containerdisk, hard link with ./":               {containerOf(layer{file("./images/f.qcow2"), hard("./disk/disk.img", "./images/f.qcow2")}), "f.qcow2"},
		"containerdisk, hard link beside the disk":       {containerOf(layer{file("disk/f.qcow2"), hard("disk/disk.img", "disk/f.qcow2")}), "f.qcow2"},
		"containerdisk, disk in the root":                {containerOf(layer{file("f.qcow2"), {Name: "etc/passwd", Content: "root"}}), "f.qcow2"},
		"containerdisk, disk in the root, empty /disk":   {containerOf(layer{{Name: "disk/"}, file("./f.IMG")}), "f.IMG"},
		"containerdisk, link in the root":                {containerOf(layer{file("a/f.qcow2"), link("disk.img", "a/f.qcow2")}), "f.qcow2"},
		"containerdisk, /disk before the root":           {containerOf(layer{{Name: "old.img", Content: "old"}}, layer{file("disk/f.qcow2")}), "f.qcow2"},
		"containerdisk, replaced in the root":            {containerOf(layer{{Name: "f.img", Content: "old"}, {Name: "g.img", Content: "old"}}, layer{{Name: ".wh.g.img"}, file("f.img")}), "f.img"},
		"oras, folder":                                   {folder("vm", ocitest.TarEntry{Name: "vm/"}, file("vm/f.qcow2")), "f.qcow2"},
		"oras, folder with other files":                  {folder("out/vm/", ocitest.TarEntry{Name: "out/vm/README.md", Content: "hello"}, file("out/vm/f.qcow2"), ocitest.TarEntry{Name: "out/vm/SHA256SUMS", Content: "x"}), "f.qcow2"},
		"oras, current folder":                           {folder(".", ocitest.TarEntry{Name: "./"}, file("./f.qcow2")), "f.qcow2"},
		"oras, folder with a link":                       {folder("vm", file("vm/f.qcow2"), link("vm/disk.img", "f.qcow2")), "f.qcow2"},
		"artifact, bzip2":                                {pushed("x/y", "f.qcow2.bz2", bzip2Of(t, qcow2)), "f.qcow2"},
		"artifact, bzip2 in the type":                    {pushed("application/x-qemu-disk+bzip2", "f.qcow2.bz2", bzip2Of(t, qcow2)), "f.qcow2"},
		"artifact, bzip2 named gzip":                     {pushed("x/y", "f.qcow2.gz", bzip2Of(t, qcow2)), "f.qcow2"},
		"artifact, zstd named xz":                        {pushed("x/y", "f.qcow2.xz", zstdOf(t, qcow2)), "f.qcow2"},
		"artifact, zstd named qcow2":                     {pushed("x/y", "f.qcow2", zstdOf(t, qcow2)), "f.qcow2"},
		"artifact, gzip named img":                       {pushed("x/y", "f.img", ocitest.Zipped(t, "", qcow2)), "f.img"},
		"artifact, xz of the type qcow2, without a name": {pushed("application/vnd.qemu.qcow2", "", xzOf(t, qcow2)), "disk.qcow2"},
		"artifact, raw named gzip":                       {pushed("x/y", "f.raw.gz", raw), "f.raw"},
		"artifact, raw in img.xz":                        {pushed("x/y", "f.img.xz", raw), "f.img"},
		"artifact, raw like gzip":                        {pushed("x/y", "f.raw", slices.Concat([]byte{0x1f, 0x8b, 8}, raw[3:])), "f.raw"},
		"disk image, bzip2": {func(t *testing.T, l ocitest.TestLayout) v1.Descriptor {
			return l.Put(v1.Manifest{ArtifactType: "application/vnd.diskimage.qcow2.gzip", Layers: []v1.Descriptor{l.Blob("x/y", bzip2Of(t, qcow2))}})
		}, "disk.qcow2"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, image, err := pullVariant(t, test)
			if err != nil {
				t.Fatal(err)
			}
			if image.Disks[0].Name != test.want {
				t.Errorf("disk %q, want %q", image.Disks[0].Name, test.want)
			}
			got, err := os.ReadFile(filepath.Join(image.Dir, image.Disks[0].Name))
			if err != nil || string(got[3:]) != string(qcow2[3:]) && string(got[3:]) != string(raw[3:]) {
				t.Errorf("content differs (%v): %d bytes", err, len(got))
			}
		})
	}
}

// TestVariantsRefused: the error says what is there.
func TestVariantsRefused(t *testing.T) {
	t.Parallel()
	qcow2 := ocitest.Qcow2File(t)
	file := func(name string) ocitest.TarEntry { return ocitest.TarEntry{Name: name, Content: string(qcow2)} }
	link := func(name, target string) ocitest.TarEntry { return ocitest.TarEntry{Name: name, Link: target} }
	type layer = []ocitest.TarEntry
	many := layer{}
	for i := range 30 {
		many = append(many, link("disk/"+strings.Repeat("x", i+1), "/elsewhere/"+strings.Repeat("x", i+1)))
	}
	tests := map[string]variant{
		"link to the host":                 {containerOf(layer{link("disk/a", "/etc/passwd")}), "no file /etc/passwd"},
		"link out of the image":            {containerOf(layer{link("disk/a", "../../../../../../etc/passwd")}), "no file /etc/passwd"},
		"hard link to the host":            {containerOf(layer{{Name: "disk/a", Link: "/etc/passwd", Hard: true}}), "no file /etc/passwd"},
		"link to itself":                   {containerOf(layer{link("disk/a", "a")}), "is a link to /disk/a"},
		"links in a circle":                {containerOf(layer{link("disk/a", "b"), link("disk/b", "a")}), "several files"},
		"links in a circle elsewhere":      {containerOf(layer{link("disk/a", "/x/b"), link("x/b", "/x/c"), link("x/c", "/x/b")}), "links lead to the disk"},
		"link to the root":                 {containerOf(layer{link("disk/a", "..")}), "is a link to /"},
		"link to a directory":              {containerOf(layer{link("disk/a", "/x"), {Name: "x/"}, file("x/f.qcow2")}), "not a regular file"},
		"link through a linked directory":  {containerOf(layer{link("disk/a", "/x/f.qcow2"), link("x", "/y"), file("y/f.qcow2")}), "not a directory"},
		"link to another disk":             {containerOf(layer{file("disk/f.qcow2"), file("x/g.qcow2"), link("disk/a", "/x/g.qcow2")}), `["f.qcow2" "x/g.qcow2"]`},
		"links to two disks":               {containerOf(layer{file("x/f"), file("x/g"), link("disk/a", "/x/f"), link("disk/b", "/x/g")}), `["x/f" "x/g"]`},
		"many links":                       {containerOf(many), "and others"},
		"target whited out":                {containerOf(layer{file("x/f")}, layer{{Name: "x/.wh.f"}, link("disk/a", "/x/f")}), "no file /x/f"},
		"several in the root":              {containerOf(layer{file("a.img"), file("b.img")}), `several in /: ["a.img" "b.img"]`},
		"other names in the root":          {containerOf(layer{file("vmlinuz"), file("disk.qcow2.sha256")}), "without a file in /disk/"},
		"whited out in the root":           {containerOf(layer{file("a.img")}, layer{{Name: ".wh.a.img"}}), "without a file in /disk/"},
		"text in the root":                 {containerOf(layer{{Name: "readme.img", Content: "hello"}}), "not a disk but text"},
		"oras, folder with two disks":      {folder("vm", file("vm/a.qcow2"), file("vm/b.qcow2")), `["a.qcow2" "b.qcow2"]`},
		"oras, folder without one":         {folder("vm", ocitest.TarEntry{Name: "vm/x", Content: "x"}), `in the directory "vm"`},
		"oras, folder of another name":     {folder("../../etc", file("etc/../disk/f.qcow2")), `in the directory "etc"`},
		"oras, folder with a link out":     {folder("vm", link("vm/f.qcow2", "/etc/passwd")), "no file /etc/passwd"},
		"oras, folder that is no archive":  {pushed(v1.MediaTypeImageLayerGzip, "vm", qcow2, "io.deis.oras.content.unpack", "true"), "damaged layer"},
		"qcow2 named raw":                  {pushed("x/y", "f.raw", qcow2), "the image says raw, but it is a qcow2 file"},
		"gzip named raw":                   {pushed("x/y", "f.raw", ocitest.Zipped(t, "", qcow2)), "compressed once more (gzip)"},
		"raw named qcow2":                  {pushed("x/y", "f.qcow2", ocitest.With(510, "\x55\xaa")), "the layer says qcow2"},
		"bzip2 that unpacks to too much":   {pushed("x/y", "f.img.bz2", bytes.Repeat(bzip2Of(t, make([]byte, 1<<20)), 84)), "unpacks to more"},
		"bzip2 that is damaged":            {pushed("x/y", "f.qcow2.bz2", bzip2Of(t, qcow2)[:40]), "damaged layer"},
		"machine-os for other hypervisors": {machineOS("applehv", "hyperv"), `[linux/amd64, linux/x86_64 disktype applehv, linux/x86_64 disktype hyperv])`},
		"bootc, with a disk for another architecture": {func(t *testing.T, l ocitest.TestLayout) v1.Descriptor {
			return l.PutIndex(platform(bootc(t, l), "linux", "arm64"), platform(artifact(l.Put(v1.Manifest{Layers: []v1.Descriptor{l.Blob("x/y", qcow2)}}), "application/vnd.diskimage.qcow2"), "qemu", "aarch64"))
		}, `nothing for QEMU on amd64, only [linux/arm64, qemu/aarch64 application/vnd.diskimage.qcow2]; to emulate it, set architecture = "arm64"`},
		"bootc alone in its index": {func(t *testing.T, l ocitest.TestLayout) v1.Descriptor {
			return l.PutIndex(platform(bootc(t, l), "linux", "amd64"))
		}, "push that"},
		"bootc, with disks of other kinds": {func(t *testing.T, l ocitest.TestLayout) v1.Descriptor {
			vmdk := artifact(l.Put(v1.Manifest{ArtifactType: "application/vnd.diskimage.vmdk", Layers: []v1.Descriptor{l.Blob("x/y", qcow2)}}), "application/vnd.diskimage.vmdk")
			return l.PutIndex(platform(bootc(t, l), "linux", "amd64"), platform(vmdk, "vmware", "x86_64"))
		}, `which offers [linux/amd64, vmware/x86_64 application/vnd.diskimage.vmdk])`},
		"index of long words": {func(t *testing.T, l ocitest.TestLayout) v1.Descriptor {
			return l.PutIndex(platform(bootc(t, l), strings.Repeat("long", 1000), "s390x"))
		}, "[" + strings.Repeat("long", 20) + "]"},
		"index of many": {func(t *testing.T, l ocitest.TestLayout) v1.Descriptor {
			var children []v1.Descriptor
			for i := range 100 {
				children = append(children, platform(bootc(t, l), "os"+strings.Repeat("x", i), "s390x"))
			}
			return l.PutIndex(children...)
		}, "67 more]"},
		"noise with a name of compression": {pushed("x/y", "f.qcow2.zst", ocitest.Noise(5000)), "not gzip, xz, zstd, bzip2"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store, image, err := pullVariant(t, test)
			if !errors.Is(err, oci.ErrFormat) && !errors.Is(err, oci.ErrInvalid) || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %+v, %v; want an error with %q", image, err, test.want)
			}
			ocitest.AssertEmpty(t, filepath.Join(store.Root(), imagesDir))
		})
	}
}
