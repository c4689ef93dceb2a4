package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/internal/diskusage"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/export"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/internal/ocitest"
	"gitlab-sardine-executor/oci/transfer"
)

// diskOfChunks is content for a raw disk: some zero chunks, an end that fills no
// chunk, and zero blocks in chunks that are not zero.
func diskOfChunks() []byte {
	content := ocitest.Noise(3<<20 + 12345)
	clear(content[1<<20 : 2<<20])
	clear(content[2<<20+100_000 : 2<<20+200_000])
	return content
}

func exportRaw(t *testing.T, content []byte, o export.Options) (oci.Reference, string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "disk.raw"), content, 0o644); err != nil {
		t.Fatal(err)
	}
	o.Disks = []export.Disk{{Path: filepath.Join(dir, "disk.raw"), Format: "raw"}}
	layout := filepath.Join(dir, "layout")
	ref := ocitest.MustParse(t, "oci:"+layout+":1")
	if _, err := export.Export(t.Context(), ref, o); err != nil {
		t.Fatal(err)
	}
	return ref, layout
}

func TestChunkedRoundTrip(t *testing.T) {
	t.Parallel()
	content := diskOfChunks()
	guest := oci.GuestConfig{Users: []oci.User{{Username: "vagrant", Password: "secret"}}}
	ref, layout := exportRaw(t, content, export.Options{Format: format.Chunked, ChunkSize: 256 << 10, Guest: guest})
	copied := filepath.Join(t.TempDir(), "copied")
	ocitest.Command(t, "", "skopeo", "--insecure-policy", "copy", "-q", "oci:"+layout+":1", "oci:"+copied+":1")
	host := ocitest.NewFaultyRegistry(t).Host
	pushed := ocitest.MustParse(t, host+"/vms/chunked:1")
	if _, err := transfer.Push(t.Context(), ref, pushed, transfer.Options{}); err != nil {
		t.Fatal(err)
	}
	throughSkopeo := ocitest.MustParse(t, host+"/vms/skopeo:1")
	ocitest.Command(t, "", "skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false", "oci:"+copied+":1", "docker://"+throughSkopeo.String())

	for _, ref := range []oci.Reference{ref, ocitest.MustParse(t, "oci:"+copied+":1"), pushed, throughSkopeo} {
		image, err := newStore(t).Pull(t.Context(), ref, PullOptions{})
		if err != nil {
			t.Fatal(ref, err)
		}
		ocitest.CheckContent(t, image, content)
		checkDigest(t, image)
		if image.Format != format.Chunked || image.Disks[0].Format != "raw" || len(image.DomainXML) == 0 || len(image.Guest.Users) != 1 || image.Architecture == "" || image.Created.IsZero() {
			t.Errorf("%s: %+v", ref, image)
		}
		stat := usageOf(t, filepath.Join(image.Dir, "disk.raw"))
		if most := int64(len(content)) - 1<<20 - 90_000; stat > most {
			t.Errorf("%s takes %d bytes, want at most %d: its zeroes are holes", ref, stat, most)
		}
	}
}

// usageOf returns the space that a file or directory takes, in bytes.
func usageOf(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if !info.IsDir() {
		return diskusage.Of(info)
	}
	used, err := diskusage.OfDir(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return used
}

func TestChunkedChain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ocitest.Command(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "8M")
	ocitest.Command(t, dir, "qemu-io", "-f", "qcow2", "-c", "write -P 0x11 0 3M", "base.qcow2")
	ocitest.Command(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", filepath.Join(dir, "base.qcow2"), "top.qcow2")
	ocitest.Command(t, dir, "qemu-io", "-f", "qcow2", "-c", "write -P 0x22 1M 64k", "top.qcow2")
	iso := filepath.Join(dir, "seed.iso")
	ocitest.Command(t, dir, "genisoimage", "-quiet", "-o", iso, "top.qcow2")
	to := ocitest.MustParse(t, "oci:"+filepath.Join(dir, "layout"))
	d, err := export.Export(t.Context(), to, export.Options{Format: format.Chunked, Disks: []export.Disk{{Path: filepath.Join(dir, "top.qcow2")}, {Path: iso, CDROM: true}}})
	if err != nil {
		t.Fatal(err)
	}
	image, err := newStore(t).Pull(t.Context(), to, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if image.Digest != d || len(image.Disks) != 3 || image.Disks[1].Backing != "base.qcow2" || !image.Disks[2].CDROM {
		t.Errorf("%s: %+v", d, image)
	}
	if ocitest.RawDigest(t, filepath.Join(image.Dir, "top.qcow2"), "qcow2") != ocitest.RawDigest(t, filepath.Join(dir, "top.qcow2"), "qcow2") {
		t.Error("the guest would see other content")
	}
}

// TestChunkedSecondVersion transfers what changed, and only that; the content
// taken over is verified.
func TestChunkedSecondVersion(t *testing.T) {
	t.Parallel()
	content := ocitest.Noise(8 << 20)
	f := ocitest.NewFaultyRegistry(t)
	push := func(tag string, content []byte) oci.Reference {
		ref, _ := exportRaw(t, content, export.Options{Format: format.Chunked, ChunkSize: 128 << 10})
		to := ocitest.MustParse(t, f.Host+"/vms/disk:"+tag)
		if _, err := transfer.Push(t.Context(), ref, to, transfer.Options{}); err != nil {
			t.Fatal(err)
		}
		return to
	}
	first := push("1", content)
	changed := bytes.Clone(content)
	changed[5<<20] ^= 1
	// Moved content is found as well.
	copy(changed[7<<20:], content[:1<<20])
	second := push("2", changed)

	for name, damage := range map[string]func(path string) error{
		"sound": func(string) error { return nil },
		"damaged base": func(path string) error {
			return errors.Join(os.Chmod(path, 0o644), overwrite(path, 3<<20, []byte("damaged")))
		},
		"base gone": os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			store := newStore(t)
			base, err := store.Pull(t.Context(), first, PullOptions{retries: fastRetries})
			if err != nil {
				t.Fatal(err)
			}
			if err := damage(filepath.Join(base.Dir, "disk.raw")); err != nil {
				t.Fatal(err)
			}
			before := f.Sent.Load()
			image, err := store.Pull(t.Context(), second, PullOptions{retries: fastRetries})
			if err != nil {
				t.Fatal(err)
			}
			ocitest.CheckContent(t, image, changed)
			sent := f.Sent.Load() - before
			if name == "sound" && sent > 140<<10 || name == "damaged base" && sent > 270<<10 {
				t.Errorf("%d bytes transferred for one chunk", sent)
			}
		})
	}
}

func TestChunkedResumes(t *testing.T) {
	t.Parallel()
	f := ocitest.NewFaultyRegistry(t)
	content := ocitest.Noise(8 << 20)
	ref, _ := exportRaw(t, content, export.Options{Format: format.Chunked, ChunkSize: 128 << 10})
	to := ocitest.MustParse(t, f.Host+"/vms/disk:1")
	if _, err := transfer.Push(t.Context(), ref, to, transfer.Options{}); err != nil {
		t.Fatal(err)
	}
	store := newStore(t)
	reached := holdAfter(f, 40)
	cmd := pullProcess(t, store, to)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-reached
	waitForPartial(t, store, func(partial string) bool { return usageOf(t, partial) >= 34*128<<10 })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	f.Fail(nil)
	image, err := store.Pull(t.Context(), to, PullOptions{retries: fastRetries})
	if err != nil {
		t.Fatal(err)
	}
	ocitest.CheckContent(t, image, content)
	twice := 0
	for _, n := range f.Gets {
		if n > 1 {
			twice++
		}
	}
	// Config and domain, those not waited for, and the pieces in flight.
	if twice > 2+4+6 {
		t.Errorf("%d of %d blobs were transferred twice", twice, len(f.Gets))
	}
}

// chunkedImage is an image in the chunked format, made by hand.
type chunkedImage struct {
	l      ocitest.TestLayout
	disk   v1.Descriptor
	chunks []v1.Descriptor
	config string
}

func newChunkedImage(l ocitest.TestLayout, content []byte, chunk int) *chunkedImage {
	c := &chunkedImage{l: l, config: "{}"}
	c.disk = l.Blob(format.TypeDisk, []byte("{}"))
	for at := 0; at < len(content); at += chunk {
		c.chunks = append(c.chunks, c.chunk(content[at:min(at+chunk, len(content))], at))
	}
	c.disk.Annotations = map[string]string{
		format.DiskName: "disk.raw", format.DiskContent: "raw", format.DiskSize: strconv.Itoa(len(content)),
		format.DiskChunkSize: strconv.Itoa(chunk), format.DiskChunks: strconv.Itoa(len(c.chunks)),
	}
	return c
}

func (c *chunkedImage) chunk(raw []byte, at int) v1.Descriptor {
	c.l.T.Helper()
	desc := c.l.Blob(format.TypeChunk, zstdOf(c.l.T, raw))
	desc.Annotations = map[string]string{
		format.ChunkOffset: strconv.Itoa(at), format.ChunkSize: strconv.Itoa(len(raw)), format.ChunkDigest: digest.FromBytes(raw).String(),
	}
	return desc
}

func (c *chunkedImage) write() oci.Reference {
	c.l.T.Helper()
	return c.l.Write(v1.Manifest{Config: c.l.Blob(v1.MediaTypeImageConfig, []byte(c.config)), Layers: append([]v1.Descriptor{c.disk}, c.chunks...)})
}

func TestChunkedHostile(t *testing.T) {
	t.Parallel()
	const chunk = format.ChunkUnit
	content := ocitest.Noise(4*chunk + 1000)
	tests := map[string]struct {
		corrupt func(c *chunkedImage)
		want    error
		text    string
	}{
		"sound":             {func(*chunkedImage) {}, nil, ""},
		"chunk missing":     {func(c *chunkedImage) { c.chunks = append(c.chunks[:1], c.chunks[2:]...) }, oci.ErrFormat, "has 4 chunks, its layer says 5"},
		"chunk repeated":    {func(c *chunkedImage) { c.chunks[2] = c.chunks[1] }, oci.ErrFormat, "lies before"},
		"out of order":      {func(c *chunkedImage) { c.chunks[1], c.chunks[2] = c.chunks[2], c.chunks[1] }, oci.ErrFormat, "lies before"},
		"one too many":      {func(c *chunkedImage) { c.disk.Annotations[format.DiskChunks] = "4" }, oci.ErrFormat, "one more than"},
		"count not a count": {func(c *chunkedImage) { c.disk.Annotations[format.DiskChunks] = "-5" }, oci.ErrFormat, "want a number"},
		"overlapping":       {func(c *chunkedImage) { c.chunks[1].Annotations[format.ChunkOffset] = "65000" }, oci.ErrFormat, "not a multiple"},
		"beyond the end": {func(c *chunkedImage) {
			c.chunks[4].Annotations[format.ChunkOffset] = strconv.Itoa(5 * chunk)
		}, oci.ErrFormat, "beyond the end"},
		"offset too large": {func(c *chunkedImage) {
			c.chunks[4].Annotations[format.ChunkOffset] = "9223372036854775808"
		}, oci.ErrFormat, "want a number"},
		"size too large":   {func(c *chunkedImage) { c.chunks[4].Annotations[format.ChunkSize] = "65536" }, oci.ErrFormat, "size 65536, want 1000"},
		"size missing":     {func(c *chunkedImage) { delete(c.chunks[0].Annotations, format.ChunkSize) }, oci.ErrFormat, "no annotation"},
		"raw digest wrong": {func(c *chunkedImage) { c.chunks[3].Annotations[format.ChunkDigest] = digest.FromString("").String() }, oci.ErrInvalid, "has digest"},
		"raw digest none":  {func(c *chunkedImage) { delete(c.chunks[3].Annotations, format.ChunkDigest) }, oci.ErrFormat, "digest"},
		"other chunk's content": {func(c *chunkedImage) {
			c.chunks[1].Digest, c.chunks[1].Size = c.chunks[2].Digest, c.chunks[2].Size
		}, oci.ErrInvalid, "has digest"},
		"bomb": {func(c *chunkedImage) {
			annotations := c.chunks[0].Annotations
			c.chunks[0] = c.chunk(make([]byte, 16<<20), 0)
			c.chunks[0].Annotations = annotations
		}, oci.ErrInvalid, "unpacks to more"},
		"too short": {func(c *chunkedImage) {
			annotations := c.chunks[0].Annotations
			c.chunks[0] = c.chunk([]byte("short"), 0)
			c.chunks[0].Annotations = annotations
		}, oci.ErrInvalid, "has 5 bytes"},
		"blown up": {func(c *chunkedImage) { c.chunks[4].Size = 1 << 40 }, oci.ErrFormat, "bytes to say"},
		"truncated": {func(c *chunkedImage) {
			annotations := c.chunks[0].Annotations
			raw, _ := zstd.NewWriter(nil)
			c.chunks[0] = c.l.Blob(format.TypeChunk, raw.EncodeAll(content[:chunk], nil)[:chunk/2])
			c.chunks[0].Annotations = annotations
		}, oci.ErrFormat, "damaged layer"},
		"not zstd": {func(c *chunkedImage) {
			annotations := c.chunks[0].Annotations
			c.chunks[0] = c.l.Blob(format.TypeChunk, content[:chunk])
			c.chunks[0].Annotations = annotations
		}, oci.ErrFormat, "damaged layer"},
		"huge window": {func(c *chunkedImage) {
			annotations := c.chunks[0].Annotations
			// A frame header that asks for a window of 2 GiB, then nothing of use.
			c.chunks[0] = c.l.Blob(format.TypeChunk, []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3, 1, 0, 0})
			c.chunks[0].Annotations = annotations
		}, oci.ErrFormat, "damaged layer"},
		"chunk size odd":   {func(c *chunkedImage) { c.disk.Annotations[format.DiskChunkSize] = "65537" }, oci.ErrFormat, "multiple of"},
		"chunk size 0":     {func(c *chunkedImage) { c.disk.Annotations[format.DiskChunkSize] = "0" }, oci.ErrFormat, "multiple of"},
		"chunk size large": {func(c *chunkedImage) { c.disk.Annotations[format.DiskChunkSize] = "1073741824" }, oci.ErrFormat, "at most"},
		"disk too large": {func(c *chunkedImage) {
			c.disk.Annotations[format.DiskSize] = "1099511627776"
			c.chunks = c.chunks[:4]
			c.disk.Annotations[format.DiskChunks] = "4"
		}, oci.ErrInvalid, "max_disk"},
		"empty disk":        {func(c *chunkedImage) { c.disk.Annotations[format.DiskSize] = "0" }, oci.ErrFormat, "empty"},
		"no name":           {func(c *chunkedImage) { delete(c.disk.Annotations, format.DiskName) }, oci.ErrFormat, "without"},
		"name ..":           {func(c *chunkedImage) { c.disk.Annotations[format.DiskName] = "../.." }, oci.ErrInvalid, ".."},
		"name with NUL":     {func(c *chunkedImage) { c.disk.Annotations[format.DiskName] = "a\x00b" }, oci.ErrInvalid, "a"},
		"name of the store": {func(c *chunkedImage) { c.disk.Annotations[format.DiskName] = "pieces.json" }, oci.ErrFormat, "name of the store"},
		"unknown content":   {func(c *chunkedImage) { c.disk.Annotations[format.DiskContent] = "vmdk" }, oci.ErrFormat, "vmdk"},
		"raw that is qcow2": {func(c *chunkedImage) { c.disk.Annotations[format.DiskContent] = "qcow2" }, oci.ErrFormat, "says qcow2"},
		"no disk layer":     {func(c *chunkedImage) { c.disk, c.chunks[0] = c.chunks[0], c.disk }, oci.ErrFormat, "belongs to no disk"},
		"disk digest bad":   {func(c *chunkedImage) { c.disk.Annotations[format.DiskDigest] = "sha256:12" }, oci.ErrFormat, "digest"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			image := newChunkedImage(ocitest.NewLayout(t), content, chunk)
			test.corrupt(image)
			store := newStore(t)
			pulled, err := store.Pull(t.Context(), image.write(), PullOptions{MaxDisk: 16 << 20})
			if test.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				ocitest.CheckContent(t, pulled, content)
				return
			}
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
				t.Fatalf("got %v; want %v with %q", err, test.want, test.text)
			}
			ocitest.AssertEmpty(t, filepath.Join(store.Root(), imagesDir))
		})
	}
}

// TestChunkedZeroDisk has no chunk at all.
func TestChunkedZeroDisk(t *testing.T) {
	t.Parallel()
	ref, _ := exportRaw(t, make([]byte, 3<<20), export.Options{Format: format.Chunked})
	image, err := newStore(t).Pull(t.Context(), ref, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ocitest.CheckContent(t, image, make([]byte, 3<<20))
}

// TestChunkedDeterministic: what is equal has an equal layer, whoever exports it.
func TestChunkedDeterministic(t *testing.T) {
	t.Parallel()
	var manifests []v1.Manifest
	for range 2 {
		ref, layout := exportRaw(t, diskOfChunks(), export.Options{Format: format.Chunked})
		raw, err := os.ReadFile(filepath.Join(layout, "index.json"))
		if err != nil {
			t.Fatal(ref, err)
		}
		var index v1.Index
		if err := json.Unmarshal(raw, &index); err != nil {
			t.Fatal(err)
		}
		if raw, err = os.ReadFile(filepath.Join(layout, "blobs", "sha256", index.Manifests[0].Digest.Encoded())); err != nil {
			t.Fatal(err)
		}
		var m v1.Manifest
		if err := json.Unmarshal(raw, &m); err != nil {
			t.Fatal(err)
		}
		manifests = append(manifests, m)
	}
	for i, layer := range manifests[0].Layers {
		if other := manifests[1].Layers[i]; other.Digest != layer.Digest {
			t.Errorf("layer %d: %s and %s", i, layer.Digest, other.Digest)
		}
	}
}
