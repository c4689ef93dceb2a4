package executor

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/failure"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/store"
	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/disk"
)

// A canary is a file of the host that no image may use. inotify reports any access.
type canary struct {
	path   string
	events int // inotify
}

const canarySong = "the content of a file of the host "

func newCanary(t *testing.T) *canary {
	t.Helper()
	c := &canary{path: filepath.Join(t.TempDir(), "canary")}
	if err := os.WriteFile(c.path, bytes.Repeat([]byte(canarySong), 1<<20/len(canarySong)), 0o644); err != nil {
		t.Fatal(err)
	}
	var err error
	if c.events, err = unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(c.events) })
	if _, err := unix.InotifyAddWatch(c.events, c.path, unix.IN_OPEN|unix.IN_ACCESS|unix.IN_MODIFY|unix.IN_ATTRIB); err != nil {
		t.Fatal(err)
	}
	return c
}

// touched reports whether the canary was opened, read or changed since the last call.
func (c *canary) touched(t *testing.T) bool {
	t.Helper()
	heard := false
	for buf := make([]byte, 4096); ; heard = true {
		n, err := unix.Read(c.events, buf)
		if errors.Is(err, unix.EAGAIN) || n == 0 {
			return heard
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A qcow2 is the content of a valid file, which tests damage.
type qcow2 []byte

// newQCOW2 returns a 1 MiB disk from qemu-img, with some content and with space for a
// name at offset 512 of its first cluster.
func newQCOW2(t *testing.T, args ...string) qcow2 {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	for _, command := range [][]string{
		append(append([]string{"qemu-img", "create", "-q", "-f", "qcow2"}, args...), path, "1M"),
		{"qemu-io", "-f", "qcow2", "-c", "write -q -P 7 64k 64k", path},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", command, err, out)
		}
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// put writes a big-endian number into the header; see docs/interop/qcow2.txt.
func (q qcow2) put(offset int, value any) qcow2 {
	if _, err := binary.Encode(q[offset:], binary.BigEndian, value); err != nil {
		panic(err)
	}
	return q
}

// number reads a number from the header.
func (q qcow2) number(offset int) uint64 { return binary.BigEndian.Uint64(q[offset:]) }

// backing sets the backing file.
func (q qcow2) backing(name string) qcow2 {
	copy(q[512:], name)
	return q.put(8, uint64(512)).put(16, uint32(len(name)))
}

// extensions replaces the header's extensions.
func (q qcow2) extensions(list ...extension) qcow2 {
	clear(q[q.headerLength():512])
	at := q.headerLength()
	for _, e := range list {
		q.put(at, e.kind).put(at+4, uint32(len(e.body)))
		copy(q[at+8:], e.body)
		at += 8 + (len(e.body)+7)&^7
	}
	return q
}

// firstL2 is the offset of the first L2 table.
func (q qcow2) firstL2() int { return int(q.number(int(q.number(atL1))) &^ (1 << 63)) }

// text writes text.
func (q qcow2) text(offset int, text string) qcow2 {
	copy(q[offset:], text)
	return q
}

// version2 converts the header to version 2, where the feature fields are extensions.
func (q qcow2) version2() qcow2 {
	clear(q[72:512])
	return q.put(atVersion, uint32(2))
}

// bootable gives a file the signature of a boot sector.
func bootable(content []byte) []byte {
	content[510], content[511] = 0x55, 0xaa
	return content
}

// vmdk is the descriptor of a VMware disk with its content in another file.
func vmdk(content string) []byte {
	text := "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n" +
		"RW 2048 FLAT \"" + content + "\" 0\n"
	return append([]byte(text), make([]byte, 1<<16-len(text))...)
}

type extension struct {
	kind uint32
	body string
}

func (q qcow2) headerLength() int { return int(binary.BigEndian.Uint32(q[100:])) }

// Offsets in the header, and kinds of extensions.
const (
	atVersion, atClusterBits, atSize, atCrypt     = 4, 20, 24, 32
	atL1Size, atL1, atRefcounts, atRefcountsSize  = 36, 40, 48, 56
	atSnapshots, atSnapshotTable                  = 60, 64
	atIncompatible, atAutoclear, atRefcountOrder  = 72, 88, 96
	atHeaderLength, atCompression                 = 100, 104
	backingFormat, dataFile, cryptHeader, bitmaps = 0xe2792aca, 0x44415441, 0x0537be77, 0x23852875
)

// Media types of layers.
const (
	domainLayer = "application/vnd.libvirt.domain.config+xml"
	qcow2Layer  = "application/x-qemu-disk+gzip"
	rawLayer    = "application/octet-stream+gzip"
	isoLayer    = "application/x-iso9660-image+gzip"
)

// A layer is a file of a hostile image.
type layer struct {
	mediaType, name string
	content         []byte
}

func oneDisk(content []byte) []layer { return []layer{{qcow2Layer, "disk.qcow2", content}} }

// A hostileDisk is an image with a disk that tries to use files of the host.
type hostileDisk struct {
	name   string
	layers []layer
	// sings says that QEMU, given the last layer as qcow2 or left to probe it, opens
	// the canary.
	sings bool
	// want is the error that refuses the image; nil if the image is made harmless.
	want error
	text string
}

// hostileDisks returns the corpus; good returns a new valid disk. (internal/qcow2 has a
// table for header checks, oci one for names and sizes of layers.)
func hostileDisks(good func() qcow2, canary string) []hostileDisk {
	return []hostileDisk{
		// Files of the host, by name.
		{"backing file", oneDisk(good().backing(canary)), true, oci.ErrInvalid, "not a disk of the image"},
		{"backing file with a format", oneDisk(good().extensions(extension{backingFormat, "raw"}).backing(canary)), true, oci.ErrInvalid, "not a disk of the image"},
		{"backing file of /etc/shadow", oneDisk(good().backing("/etc/shadow")), false, oci.ErrInvalid, "/etc/shadow"},
		{"backing file through ..", oneDisk(good().backing("../../../../../../../.." + canary)), true, oci.ErrInvalid, "not a disk of the image"},
		{"backing file: with the protocol file", oneDisk(good().backing("file:" + canary)), true, oci.ErrInvalid, "not a disk of the image"},
		{"backing file: json", oneDisk(good().backing(`json:{"driver":"raw","file":{"driver":"file","filename":"` + canary + `"}}`)), true, oci.ErrInvalid, "not a disk of the image"},
		{"backing file: json that ends like a layer", []layer{{qcow2Layer, "base.qcow2", good()}, {qcow2Layer, "disk.qcow2", good().backing(`json:{"driver":"raw","file":{"driver":"file","filename":"` + canary + `"},"node-name":"a/base.qcow2"}`)}}, true, oci.ErrInvalid, "not a disk of the image"},
		{"backing file: nbd", oneDisk(good().backing("nbd://127.0.0.1:9/canary")), false, oci.ErrInvalid, "nbd://"},
		{"backing file: nbd over a socket", oneDisk(good().backing("nbd+unix:///?socket=" + canary)), false, oci.ErrInvalid, "nbd+unix"},
		{"backing file: http", oneDisk(good().backing("http://127.0.0.1:9/disk.raw")), false, oci.ErrInvalid, "http://"},
		{"backing file: ssh", oneDisk(good().backing("ssh://root@127.0.0.1/etc/shadow")), false, oci.ErrInvalid, "ssh://"},
		{"backing file: a directory as a FAT disk", oneDisk(good().backing("fat:" + filepath.Dir(canary))), true, oci.ErrInvalid, "fat:"},
		{"backing file: a device", oneDisk(good().backing("/dev/sda")), false, oci.ErrInvalid, "/dev/sda"},
		{"backing file: a debugging driver", oneDisk(good().backing("blkdebug::" + canary)), true, oci.ErrInvalid, "blkdebug"},
		{"backing file: itself", oneDisk(good().backing("disk.qcow2")), false, oci.ErrInvalid, "not a disk of the image"},
		{"backing files in a circle", []layer{{qcow2Layer, "a.qcow2", good().backing("b.qcow2")}, {qcow2Layer, "b.qcow2", good().backing("a.qcow2")}}, false, oci.ErrInvalid, "not a disk of the image"},
		{"data file", oneDisk(good().put(atIncompatible, uint64(4)).extensions(extension{dataFile, canary})), true, oci.ErrInvalid, "another file"},
		{"data file, raw", oneDisk(good().put(atIncompatible, uint64(4)).put(atAutoclear, uint64(2)).extensions(extension{dataFile, canary})), true, oci.ErrInvalid, "another file"},
		{"data file without the bit", oneDisk(good().extensions(extension{dataFile, canary})), false, oci.ErrInvalid, "another file"},
		{"data file without a name", oneDisk(good().put(atIncompatible, uint64(4)).extensions()), false, oci.ErrInvalid, "another file"},
		{"raw data file, no other sign of it", oneDisk(good().put(atAutoclear, uint64(2))), false, oci.ErrInvalid, "another file"},
		{"data file: json", oneDisk(good().put(atIncompatible, uint64(4)).extensions(extension{dataFile, `json:{"driver":"file","filename":"` + canary + `"}`})), false, oci.ErrInvalid, "another file"},
		{"data file of a version 2 header", oneDisk(good().version2().put(72, uint32(dataFile)).put(76, uint32(len(canary))).text(80, canary)), false, oci.ErrInvalid, "another file"},
		{"a header behind the header", oneDisk(good().put(atHeaderLength, uint32(448)).put(448, uint32(dataFile)).put(452, uint32(len(canary))).text(456, canary).put(atIncompatible, uint64(4))), true, oci.ErrInvalid, "another file"},

		// Files with a format that a program might probe.
		{"raw disk that is a qcow2", []layer{{rawLayer, "disk.raw", good().backing(canary)}}, true, nil, ""},
		{"CD-ROM that is a qcow2", append(oneDisk(good()), layer{isoLayer, "tools.iso", good().backing(canary)}), true, nil, ""},
		{"raw disk that is a VMDK", []layer{{rawLayer, "disk.raw", vmdk(canary)}}, true, oci.ErrFormat, "VMDK"},
		{"raw disk that is a VMDK with a boot sector", []layer{{rawLayer, "disk.raw", bootable(vmdk(canary))}}, true, nil, ""},
		{"VMDK under the name of qcow2", oneDisk(vmdk(canary)), true, oci.ErrFormat, "qcow2"},
		{"raw base, called qcow2 by the overlay", []layer{
			{rawLayer, "base.raw", good().backing(canary)},
			{qcow2Layer, "disk.qcow2", good().extensions(extension{backingFormat, "qcow2"}).backing("base.raw")},
		}, false, nil, ""},
		{"raw base without a format in the overlay", []layer{
			{rawLayer, "base.raw", good().backing(canary)},
			{qcow2Layer, "disk.qcow2", good().extensions().backing("base.raw")},
		}, false, nil, ""},
		{"base outside of the image", []layer{{qcow2Layer, filepath.Base(canary), good()}, {qcow2Layer, "disk.qcow2", good().extensions(extension{backingFormat, "raw"}).backing(canary)}}, true, nil, ""},

		// Headers with false values.
		{"LUKS", oneDisk(good().put(atCrypt, uint32(2))), false, oci.ErrFormat, "encrypted"},
		{"AES", oneDisk(good().put(atCrypt, uint32(1))), false, oci.ErrFormat, "encrypted"},
		{"encryption header far away", oneDisk(good().extensions(extension{cryptHeader, "\x7f\xff\xff\xff\xff\xff\xff\x00\x7f\xff\xff\xff\xff\xff\xff\x00"})), false, oci.ErrInvalid, "encryption header"},
		{"bitmaps far away", oneDisk(good().put(atAutoclear, uint64(1)).extensions(extension{bitmaps, "\x00\x00\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\x00\x00\xff\xff\xff\xff\x00\x00"})), false, nil, ""},
		{"version 0", oneDisk(good().put(atVersion, uint32(0))), false, oci.ErrInvalid, "version 0"},
		{"version 1, with a backing file", oneDisk(good().put(atVersion, uint32(1)).backing(canary)), false, oci.ErrInvalid, "version 1"},
		{"version 4", oneDisk(good().put(atVersion, uint32(4))), false, oci.ErrInvalid, "version 4"},
		{"size above the limit", oneDisk(good().put(atSize, uint64(64<<30)).put(atL1Size, uint32(128))), false, oci.ErrInvalid, "max_disk"},
		{"negative size", oneDisk(good().put(atSize, uint64(1<<63))), false, oci.ErrInvalid, "virtual size"},
		{"size that overflows", oneDisk(good().put(atSize, uint64(1<<63-1))), false, oci.ErrInvalid, "virtual size"},
		{"L1 table of 16 GiB", oneDisk(good().put(atL1Size, uint32(1<<31))), false, oci.ErrInvalid, "too large"},
		{"L1 table beyond the file", oneDisk(good().put(atL1, uint64(1<<40))), false, nil, ""},
		{"L1 table that is the header", oneDisk(good().put(atL1, uint64(0))), false, nil, ""},
		{"L2 table beyond the file", oneDisk(good().put(int(good().number(atL1)), uint64(1<<63|1<<40))), false, nil, ""},
		{"L2 table that is the L1 table", oneDisk(good().put(int(good().number(atL1)), 1<<63|good().number(atL1))), false, nil, ""},
		{"compressed cluster beyond the file", oneDisk(good().put(good().firstL2(), uint64(1<<62|1<<40))), false, nil, ""},
		{"refcount table beyond the file", oneDisk(good().put(atRefcounts, uint64(1<<40))), false, nil, ""},
		{"refcount table of 256 TiB", oneDisk(good().put(atRefcountsSize, uint32(1<<32-1))), false, oci.ErrInvalid, "refcount table"},
		{"refcounts of 2^40 bits", oneDisk(good().put(atRefcountOrder, uint32(40))), false, oci.ErrInvalid, "refcount order"},
		{"clusters of no bytes", oneDisk(good().put(atClusterBits, uint32(0))), false, oci.ErrInvalid, "cluster bits 0"},
		{"clusters of 2^63 bytes", oneDisk(good().put(atClusterBits, uint32(63))), false, oci.ErrInvalid, "cluster bits 63"},
		{"four thousand million snapshots", oneDisk(good().put(atSnapshots, uint32(1<<32-1))), false, oci.ErrInvalid, "snapshots"},
		{"snapshots beyond the file", oneDisk(good().put(atSnapshots, uint32(200)).put(atSnapshotTable, uint64(1<<40))), false, nil, ""},
		{"unknown incompatible feature", oneDisk(good().put(atIncompatible, uint64(1<<5))), false, oci.ErrInvalid, "unknown incompatible"},
		{"marked as corrupt", oneDisk(good().put(atIncompatible, uint64(2))), false, oci.ErrFormat, "corrupt"},
		{"unknown compression", oneDisk(good().put(atIncompatible, uint64(8)).put(atCompression, uint8(255))), false, oci.ErrInvalid, "unknown compression type 255"},
		{"zstd without the bit", oneDisk(good().put(atCompression, uint8(1))), false, oci.ErrInvalid, "compression type 1"},
		{"no refcount table", oneDisk(good().put(atRefcountsSize, uint32(0))), false, oci.ErrInvalid, "no refcount table"},
		{"subclusters in clusters that are too small", oneDisk(good().put(atIncompatible, uint64(16)).put(atClusterBits, uint32(9))), false, oci.ErrInvalid, "extended L2"},
		{"header shorter than a header", oneDisk(good().put(atHeaderLength, uint32(8))), false, oci.ErrInvalid, "header length"},
		{"header longer than its cluster", oneDisk(good().put(atHeaderLength, uint32(1<<31))), false, oci.ErrInvalid, "header length"},
		{"extension longer than its cluster", oneDisk(good().put(good().headerLength()+4, uint32(1<<32-8))), false, oci.ErrInvalid, "does not fit"},
		{"backing name far away", oneDisk(good().backing(canary).put(8, uint64(1<<62))), false, oci.ErrInvalid, "outside of the first cluster"},
		{"backing name of 4 GiB", oneDisk(good().backing(canary).put(16, uint32(1<<32-1))), false, oci.ErrInvalid, "too long"},
		{"backing name in the header", oneDisk(good().backing(canary).put(8, uint64(8))), false, oci.ErrInvalid, "inside of the header"},
		{"backing name of two readings", oneDisk(good().backing(canary + "\x00/disk.qcow2")), true, oci.ErrInvalid, "NUL"},
		{"backing format twice", oneDisk(good().extensions(extension{backingFormat, "raw"}, extension{backingFormat, "qcow2"})), false, oci.ErrInvalid, "twice"},
		{"a header and nothing else", oneDisk(good()[:512]), false, nil, ""},
	}
}

// TestHostileDisks handles each image as a job would: pull and check it, create a machine
// with overlays, and read its disks with QEMU as libvirt would. The canary must never be
// opened, and its name never be written.
func TestHostileDisks(t *testing.T) {
	t.Parallel()
	canary := newCanary(t)
	made := newQCOW2(t)
	good := func() qcow2 { return bytes.Clone(made) }
	tests := hostileDisks(good, canary.path)
	silent := make([]layer, 0, len(tests))
	for _, test := range tests {
		if last := test.layers[len(test.layers)-1]; !test.sings {
			silent = append(silent, last)
		} else if !exposed(t, canary, last) {
			t.Errorf("%s: without us, QEMU does not open the canary", test.name)
		}
	}
	if exposed(t, canary, silent...) {
		t.Error("without us, QEMU opens the canary for one that should not sing")
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			images, err := store.Open(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			ref := layoutOf(t, test.layers)
			image, err := images.Pull(t.Context(), ref, store.PullOptions{Policies: []oci.PullPolicy{oci.PullAlways}, MaxDisk: 1 << 30})
			if canary.touched(t) {
				t.Error("pull opened a file of the host")
			}
			if test.want != nil {
				if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
					t.Fatalf("got %v; want %v with %q", err, test.want, test.text)
				}
				if failure.Classify(err) != failure.Build {
					t.Errorf("the failure is a %s", failure.Classify(err))
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer image.Close()
			checkMachine(t, canary, image)
		})
	}
}

// exposed reports whether QEMU opens the canary for one of the disks if nothing is checked.
func exposed(t *testing.T, c *canary, disks ...layer) bool {
	t.Helper()
	dir := t.TempDir()
	var commands strings.Builder
	for i, disk := range disks {
		path := filepath.Join(dir, strconv.Itoa(i))
		if err := os.WriteFile(path, disk.content, 0o600); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&commands, "open -r %s\nread 0 512k\nclose\n", path)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	qemu := exec.CommandContext(ctx, "qemu-io")
	qemu.Stdin = strings.NewReader(commands.String() + "help quit\n")
	// Most disks are damaged: QEMU goes on with the next one.
	output, _ := qemu.CombinedOutput()
	if !strings.Contains(string(output), "quit -- exit") {
		t.Fatalf("qemu-io did not get to its end: %.500s", output)
	}
	return c.touched(t)
}

// checkMachine creates the machine of an image, up to libvirt, and reads its disks.
func checkMachine(t *testing.T, c *canary, image *oci.Image) {
	t.Helper()
	settings, err := config.Parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	spec := SpecFor(image, FetchAndCloneOptions{Name: "machine", Settings: settings.For(""), Dirs: config.Dirs{Overlays: "/nowhere/clones", Jobs: "/nowhere/jobs"}})
	doc, _, err := vm.Preview(spec)
	if err != nil {
		t.Fatal(err)
	}
	domain := &libvirtxml.Domain{}
	if err := domain.Unmarshal(doc); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(doc, c.path) {
		t.Errorf("the domain names a file of the host:\n%s", doc)
	}
	clones := t.TempDir()
	overlays, err := disk.CloneDisks(t.Context(), spec.Disks, clones, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, device := range domain.Devices.Disks {
		path := device.Source.File.File
		if overlay := overlayOf(overlays, path); overlay != "" {
			path = overlay
			if content, err := os.ReadFile(path); err != nil || bytes.Contains(content, []byte(c.path)) {
				t.Errorf("the overlay names a file of the host (%v)", err)
			}
		}
		// A disk that QEMU does not open should have been refused.
		if out, err := exec.Command("qemu-io", "-r", "-f", device.Driver.Type, "-c", "length", path).CombinedOutput(); err != nil || !strings.Contains(string(out), "bytes") && !strings.Contains(string(out), "iB") {
			t.Errorf("disk %d: QEMU does not open it: %v %s", i, err, out)
		}
		read := filepath.Join(t.TempDir(), "read")
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		out, err := exec.CommandContext(ctx, "qemu-img", "convert", "-f", device.Driver.Type, "-O", "raw", path, read).CombinedOutput()
		if ctx.Err() != nil {
			t.Errorf("disk %d: QEMU does not end", i)
		}
		cancel()
		t.Logf("disk %d (%s): %v %s", i, device.Driver.Type, err, bytes.TrimSpace(out))
		if content, err := os.ReadFile(read); err == nil && bytes.Contains(content, []byte(canarySong)) {
			t.Errorf("disk %d: a guest reads the content of a file of the host", i)
		}
	}
	if c.touched(t) {
		t.Error("a file of the host was opened")
	}
}

// overlayOf returns the overlay for a path in a preview.
func overlayOf(overlays map[string]string, preview string) string {
	for _, path := range overlays {
		if filepath.Base(path) == filepath.Base(preview) {
			return path
		}
	}
	return ""
}

// layoutOf writes an image in the Python tool's format.
func layoutOf(t *testing.T, layers []layer) oci.Reference {
	t.Helper()
	dir := t.TempDir()
	blob := func(mediaType string, content []byte) v1.Descriptor {
		d := digest.FromBytes(content)
		path := filepath.Join(dir, "blobs", "sha256", d.Encoded())
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, 0o644)); err != nil {
			t.Fatal(err)
		}
		return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(content))}
	}
	object := func(mediaType string, v any) v1.Descriptor {
		content, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return blob(mediaType, content)
	}
	manifest := v1.Manifest{
		Config: blob(v1.MediaTypeImageConfig, []byte(`{"architecture":"amd64","os":"linux"}`)),
		Layers: []v1.Descriptor{blob(domainLayer, domainOf(layers))},
	}
	manifest.SchemaVersion, manifest.MediaType = 2, v1.MediaTypeImageManifest
	for _, l := range layers {
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		z.Name = l.name
		if _, err := z.Write(l.content); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		manifest.Layers = append(manifest.Layers, blob(l.mediaType, packed.Bytes()))
	}
	index, err := json.Marshal(v1.Index{Manifests: []v1.Descriptor{object(v1.MediaTypeImageManifest, manifest)}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "index.json"), index, 0o644); err != nil {
		t.Fatal(err)
	}
	ref, err := oci.ParseReference("oci:" + dir)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// domainOf returns a domain with the disks called disk and tools.
func domainOf(layers []layer) []byte {
	var disks strings.Builder
	for i, l := range layers {
		switch strings.TrimSuffix(l.name, filepath.Ext(l.name)) {
		case "disk":
			fmt.Fprintf(&disks, "<disk type='file' device='disk'><source file='%s'/><target dev='vd%c'/></disk>", l.name, 'a'+i)
		case "tools":
			fmt.Fprintf(&disks, "<disk type='file' device='cdrom'><source file='%s'/><target dev='sd%c'/></disk>", l.name, 'a'+i)
		}
	}
	return []byte("<domain type='kvm'><memory>262144</memory><os><type arch='x86_64' machine='q35'>hvm</type></os><devices>" +
		disks.String() + "</devices></domain>")
}
