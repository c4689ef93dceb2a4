package export

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/internal/ocitest"
	"gitlab-sardine-executor/oci/packing"
	"gitlab-sardine-executor/oci/store"
	"gitlab-sardine-executor/oci/unpack/decompress"
)

// A pythonFile is a disk as the Python tool unpacks it.
type pythonFile struct {
	name    string
	content []byte
}

// importAsPython reads a layout as the Python tool does, without any code of ours: of
// the entries of a tag the last counts; a layer whose type, without what follows a
// semicolon, ends in +gzip belongs to a disk; a blob that begins with a gzip header
// begins a new one, named in that header, and any other continues the one before,
// whatever the number of its chunk. diff_ids and history have an entry for each
// file.
func importAsPython(t *testing.T, layout, tag string) (domain []byte, files []pythonFile) {
	t.Helper()
	type descriptor struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int               `json:"size"`
		Annotations map[string]string `json:"annotations"`
	}
	blob := func(d descriptor) []byte {
		t.Helper()
		content, err := os.ReadFile(filepath.Join(layout, "blobs", strings.ReplaceAll(d.Digest, ":", "/")))
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(content); len(content) != d.Size || "sha256:"+hex.EncodeToString(sum[:]) != d.Digest {
			t.Fatalf("the blob of %+v is another", d)
		}
		return content
	}
	var index struct{ Manifests []descriptor }
	ocitest.ReadJSON(t, filepath.Join(layout, "index.json"), &index)
	var top descriptor
	for _, d := range index.Manifests {
		if d.Annotations["org.opencontainers.image.ref.name"] == tag {
			top = d
		}
	}
	var manifest struct {
		SchemaVersion int
		MediaType     string
		Config        descriptor
		Layers        []descriptor
		Annotations   map[string]string
	}
	if err := json.Unmarshal(blob(top), &manifest); err != nil {
		t.Fatal(err)
	}
	if manifest.SchemaVersion != 2 || manifest.MediaType != "application/vnd.oci.image.manifest.v1+json" || manifest.MediaType != top.MediaType ||
		manifest.Config.MediaType != "application/vnd.oci.image.config.v1+json" || manifest.Annotations != nil {
		t.Errorf("manifest: %+v", manifest)
	}

	var plain [][]byte // each uncompressed file
	var packed []*bytes.Buffer
	for i, layer := range manifest.Layers {
		content := blob(layer)
		mediaType, _, _ := strings.Cut(layer.MediaType, ";")
		switch {
		case i == 0 && layer.MediaType == "application/vnd.libvirt.domain.config+xml":
			domain = content
			plain = append(plain, content)
		case i == 1 && layer.MediaType == "application/vnd.sardinecake.vm.config.v1+json":
			plain = append(plain, content)
		case !strings.HasSuffix(mediaType, "+gzip"):
			t.Fatalf("layer %d has the type %s", i, layer.MediaType)
		case bytes.HasPrefix(content, []byte{0x1f, 0x8b}):
			if bytes.Count([]byte(layer.MediaType), []byte(";")) != 0 {
				t.Errorf("layer %d, a %s, begins a new disk", i, layer.MediaType)
			}
			packed = append(packed, bytes.NewBuffer(content))
		case len(packed) == 0:
			t.Fatalf("layer %d, a %s, continues nothing", i, layer.MediaType)
		default:
			packed[len(packed)-1].Write(content)
		}
	}
	for i, stream := range packed {
		// Flags FNAME only, no extra flags, no operating system.
		if h := stream.Bytes()[:10]; h[2] != 8 || h[3] != 0x08 || h[8] != 0 || h[9] != 0xff {
			t.Errorf("disk %d has the gzip header % x", i, h)
		}
		rest := bufio.NewReader(stream)
		z, err := gzip.NewReader(rest)
		if err != nil {
			t.Fatal(err)
		}
		z.Multistream(false)
		content, err := io.ReadAll(z)
		if err != nil {
			t.Fatalf("disk %d: %v", i, err)
		}
		if _, err := rest.ReadByte(); !errors.Is(err, io.EOF) {
			t.Errorf("disk %d is more than one gzip stream: %v", i, err)
		}
		if z.ModTime.IsZero() || strings.Contains(z.Name, "/") {
			t.Errorf("disk %d is called %q, of %v", i, z.Name, z.ModTime)
		}
		files, plain = append(files, pythonFile{z.Name, content}), append(plain, content)
	}

	var config struct {
		Architecture, OS string
		Created          any
		RootFS           struct {
			Type    string
			DiffIDs []string `json:"diff_ids"`
		}
		History []struct{ Created any }
	}
	if err := json.Unmarshal(blob(manifest.Config), &config); err != nil {
		t.Fatal(err)
	}
	if config.Architecture == "" || config.OS == "" || config.RootFS.Type != "layers" || len(config.History) != len(plain) || len(config.RootFS.DiffIDs) != len(plain) {
		t.Fatalf("config of %d files: %+v", len(plain), config)
	}
	for i, content := range plain {
		if sum := sha256.Sum256(content); config.RootFS.DiffIDs[i] != "sha256:"+hex.EncodeToString(sum[:]) {
			t.Errorf("diff id %d is %s, the file has %x", i, config.RootFS.DiffIDs[i], sum)
		}
	}
	return domain, files
}

// TestPythonReader: it reads what the Python tool wrote as that tool says.
func TestPythonReader(t *testing.T) {
	t.Parallel()
	for _, fixture := range []string{"single", "chunked", "chain", "twodisk", "novmconfig", "multitag"} {
		want := ocitest.ReadExpected(t, fixture)
		for _, manifest := range want.Manifests {
			_, files := importAsPython(t, filepath.Join("..", "testdata", "sardinecake", fixture, "oci"), manifest.Tag)
			for _, file := range want.Files {
				if file.Tag != "" && file.Tag != manifest.Tag {
					continue
				}
				if len(files) == 0 || files[0].name != file.Name || fmt.Sprintf("%x", sha256.Sum256(files[0].content)) != file.FileSHA256 {
					t.Fatalf("%s: %d files are left, want %s next", fixture, len(files), file.Name)
				}
				files = files[1:]
			}
			if len(files) > 0 {
				t.Errorf("%s: %d files too many", fixture, len(files))
			}
		}
	}
}

// TestExportForPython: the Python tool finds the same disks in what we export,
// whole and in pieces of any size.
func TestExportForPython(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ocitest.Command(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "8M")
	ocitest.Command(t, dir, "qemu-io", "-f", "qcow2", "-c", "write -P 0x11 0 1M", "base.qcow2")
	ocitest.Command(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", filepath.Join(dir, "base.qcow2"), "top.qcow2")
	// Noise does not compress, so that these bytes are in the stream, too.
	content := ocitest.Noise(200_000)
	for i := 5000; i+4 < len(content); i += 9973 {
		copy(content[i:], "\x1f\x8b\x1f\x8b\x08")
	}
	raw, iso := filepath.Join(dir, "data.raw"), filepath.Join(dir, "seed.iso")
	ocitest.Command(t, dir, "genisoimage", "-quiet", "-o", iso, "top.qcow2")
	if err := os.WriteFile(raw, content, 0o644); err != nil {
		t.Fatal(err)
	}
	options := Options{
		Disks: []Disk{{Path: raw}, {Path: filepath.Join(dir, "top.qcow2")}, {Path: iso, CDROM: true}},
		Guest: oci.GuestConfig{Users: []oci.User{{Username: "vagrant", Password: "secret"}}}, Created: time.Unix(1795395233, 0),
	}
	layout := filepath.Join(dir, "layout")
	export := func(tag string, chunk int64) []pythonFile {
		t.Helper()
		o, to := options, ocitest.MustParse(t, "oci:"+layout+":"+tag)
		o.ChunkSize = chunk
		if _, err := Export(t.Context(), to, o); err != nil {
			t.Fatal(err)
		}
		domain, files := importAsPython(t, layout, tag)
		// What we unpack ourselves is checked elsewhere to be what was packed.
		image, err := newStore(t).Pull(t.Context(), to, store.PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(domain, image.DomainXML) || len(files) != len(image.Disks) {
			t.Errorf("%d files, we find %d; domain:\n%s", len(files), len(image.Disks), domain)
		}
		for i, disk := range image.Disks {
			ours, err := os.ReadFile(filepath.Join(image.Dir, disk.Name))
			if err != nil || files[i].name != disk.Name || !bytes.Equal(files[i].content, ours) {
				t.Errorf("chunks of %d: disk %s: %v, or the Python tool finds another", chunk, disk.Name, err)
			}
		}
		return files
	}
	whole := export("whole", 0)
	if want := []string{"data.raw", "base.qcow2", "top.qcow2", "seed.iso"}; len(whole) != len(want) || whole[0].name != want[0] || whole[1].name != want[1] ||
		whole[2].name != want[2] || whole[3].name != want[3] || !bytes.Equal(whole[0].content, content) {
		t.Fatalf("not %v, base first", want)
	}
	export("small", minPiece)
	export("4096", 4096)

	// Cut just where the next piece would begin like a gzip stream.
	var stream bytes.Buffer
	file, err := packing.List(options.Disks, packing.OpenTrusted)
	if err != nil {
		t.Fatal(err)
	}
	if err := compress(&stream, bytes.NewReader(content), file[0], 0); err != nil {
		t.Fatal(err)
	}
	cuts := 0
	for at := minPiece; at < stream.Len() && cuts < 5; at++ {
		if bytes.HasPrefix(stream.Bytes()[at:], decompress.MagicGzip) {
			export(fmt.Sprintf("cut-%d", at), int64(at))
			cuts++
		}
	}
	if cuts < 5 {
		t.Errorf("the stream has only %d places to cut at", cuts)
	}
}

// TestExportSmallPieces: the first piece has to have the whole header.
func TestExportSmallPieces(t *testing.T) {
	t.Parallel()
	to := ocitest.MustParse(t, "oci:"+filepath.Join(t.TempDir(), "layout"))
	if _, err := Export(t.Context(), to, Options{Disks: rawDisk(t, 4096), ChunkSize: minPiece - 1}); err == nil || !strings.Contains(err.Error(), "at least 1024") {
		t.Errorf("got %v, want that 1023 bytes are too few", err)
	}
}
