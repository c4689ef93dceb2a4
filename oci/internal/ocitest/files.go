package ocitest

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"gitlab-sardine-executor/oci"
)

func Command(t *testing.T, dir string, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func FixtureRef(t *testing.T, fixture, tag string) oci.Reference {
	t.Helper()
	return MustParse(t, "oci:"+filepath.Join("..", "testdata", "sardinecake", fixture, "oci")+":"+tag)
}

func MustParse(t *testing.T, text string) oci.Reference {
	t.Helper()
	ref, err := oci.ParseReference(text)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func FileDigest(t *testing.T, path string) digest.Digest {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, err := digest.FromReader(f)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// RawDigest is the digest of what a guest sees, the whole chain read by QEMU.
// A raw file is that itself.
func RawDigest(t *testing.T, path, format string) digest.Digest {
	t.Helper()
	if info, err := os.Stat(path); err == nil && format == "raw" && info.Size()%512 == 0 {
		return FileDigest(t, path)
	}
	raw := filepath.Join(t.TempDir(), "raw")
	out, err := exec.Command("qemu-img", "convert", "-f", format, "-O", "raw", path, raw).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img convert %s: %v\n%s", path, err, out)
	}
	return FileDigest(t, raw)
}

// noise is what was made of the noise so far.
var noise = struct {
	sync.Mutex
	state uint64
	bytes []byte
}{state: 88172645463325252}

// Noise does not compress. It always begins with the same bytes.
func Noise(size int) []byte {
	noise.Lock()
	defer noise.Unlock()
	if have := len(noise.bytes); have < size {
		state := noise.state
		noise.bytes = append(make([]byte, 0, size), noise.bytes...)[:size]
		for i := have; i < size; i++ {
			state ^= state << 13
			state ^= state >> 7
			state ^= state << 17
			noise.bytes[i] = byte(state >> 32)
		}
		noise.state = state
	}
	return bytes.Clone(noise.bytes[:size])
}

// Compressible content makes a gzip stream of many deflate blocks.
func Compressible(size int) []byte {
	b := Noise(size)
	for i := range b {
		b[i] = "abcdefg\x00"[b[i]%8] // a disk is no text
	}
	return b
}

func CheckContent(t *testing.T, image *oci.Image, want []byte) {
	t.Helper()
	f, err := os.Open(filepath.Join(image.Dir, image.Disks[0].Name))
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	part := make([]byte, 256<<10)
	for {
		n, err := io.ReadFull(f, part)
		if n > len(want) || !bytes.Equal(part[:n], want[:n]) {
			t.Error("content differs")
			return
		}
		want = want[n:]
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		} else if err != nil {
			t.Error(err)
			return
		}
	}
	if len(want) > 0 {
		t.Errorf("content lacks its last %d bytes", len(want))
	}
}

func BlobNames(t *testing.T, layout string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(layout, "blobs", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		names[i] = filepath.Base(name)
	}
	return names
}

func ReadJSON(t *testing.T, path string, v any) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		t.Fatal(err)
	}
}

func WriteJSON(t *testing.T, path string, v any) {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, raw, 0o644); err != nil {
		t.Fatal(err)
	}
}

// Iso has the first volume descriptor of an ISO 9660 image. bootable says whether it
// has a boot sector, too; from is the first sector of its only partition, if it is not
// negative.
func Iso(bootable bool, from int) []byte {
	b := make([]byte, 200<<10)
	copy(b[(16*2048):], "\x01CD001\x01")
	if bootable {
		b[510], b[511] = 0x55, 0xaa
	}
	if from >= 0 {
		b[446+4] = 0x83
		binary.LittleEndian.PutUint32(b[446+8:], uint32(from))
		binary.LittleEndian.PutUint32(b[446+12:], 100)
	}
	return b
}

// With puts text into a disk of zeroes.
func With(at int, text string) []byte {
	b := make([]byte, 100<<10)
	copy(b[at:], text)
	return b
}

// Allocating is how many bytes do allocates in all.
func Allocating(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// AuthFile is a Docker config.json with one password.
func AuthFile(key, password string) string {
	auth := base64.StdEncoding.EncodeToString([]byte("u:" + password))
	return fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, key, auth)
}

// Expected is what was noted about an image when the Python tool made it.
type Expected struct {
	Manifests []struct {
		Tag      string        `json:"tag"`
		Manifest digest.Digest `json:"manifest"`
	} `json:"manifests"`
	Files []struct {
		Tag         string `json:"tag"`
		Name        string `json:"name_in_image"`
		Device      string `json:"device"`
		Format      string `json:"format"`
		FileSize    int64  `json:"file_size"`
		FileSHA256  string `json:"file_sha256"`
		VirtualSize int64  `json:"virtual_size"`
		RawSHA256   string `json:"raw_sha256"`
	} `json:"files"`
}

func ReadExpected(t *testing.T, fixture string) Expected {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "testdata", "sardinecake", fixture, "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var e Expected
	if err := json.Unmarshal(raw, &e); err != nil {
		t.Fatal(err)
	}
	return e
}

func AssertEmpty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 0 {
		t.Errorf("%s: %v, %v; want nothing there", dir, entries, err)
	}
}

// Mounted mounts a tmpfs, or a directory read-only, for a test. That takes root.
func Mounted(t *testing.T, what, how string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	dir := t.TempDir()
	var err error
	if what == "tmpfs" {
		err = syscall.Mount("tmpfs", dir, "tmpfs", 0, how)
	} else if err = syscall.Mount(what, dir, "", syscall.MS_BIND, ""); err == nil {
		err = syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_RDONLY, "")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// CheckLayoutFiles lets other tools read a layout.
func CheckLayoutFiles(t *testing.T, layout, tag string, want digest.Digest) {
	t.Helper()
	got := Command(t, ".", "skopeo", "inspect", "--raw", "oci:"+layout+":"+tag)
	if d := digest.FromString(got); d != want {
		t.Errorf("skopeo finds %s under %s, want %s", d, tag, want)
	}
	if tags := strings.Fields(Command(t, ".", "umoci", "list", "--layout", layout)); !strings.Contains(" "+strings.Join(tags, " ")+" ", " "+tag+" ") {
		t.Errorf("umoci finds the tags %v", tags)
	}
	if _, err := os.Stat(filepath.Join(layout, ".partial")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf(".partial: %v", err)
	}
}
