package diskfile

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/internal/ocitest"
)

// aMachine has an overlay on a base with the same name in another directory, a raw disk and a
// CD-ROM.
func aMachine(t *testing.T) (m *oci.Machine, dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "base"), 0o755); err != nil {
		t.Fatal(err)
	}
	ocitest.Command(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "base/web.qcow2", "1M")
	ocitest.Command(t, dir, "qemu-io", "-f", "qcow2", "-c", "write -P 7 0 64k", "base/web.qcow2")
	ocitest.Command(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "base/web.qcow2", "-F", "qcow2", "web.qcow2")
	for name, content := range map[string][]byte{"data.raw": ocitest.With(510, "\x55\xaa"), "cd.iso": ocitest.Iso(true, 1)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return &oci.Machine{
		DomainXML: []byte("<domain/>"), Architecture: "amd64",
		Disks: []oci.MachineDisk{
			{Path: filepath.Join(dir, "web.qcow2"), Name: "web.qcow2", Format: "qcow2"},
			{Path: filepath.Join(dir, "data.raw"), Name: "data.raw", Format: "raw"},
			{Path: filepath.Join(dir, "cd.iso"), Name: "cd.iso", Format: "raw", CDROM: true},
		},
	}, dir
}

func manifestOf(t *testing.T, m *oci.Machine) string {
	t.Helper()
	src, err := OpenMachine(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	raw, _, err := src.Manifest(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// Equal machines are one image, whatever the times of their files. What changes the image
// changes the identity.
func TestMachineDigest(t *testing.T) {
	m, dir := aMachine(t)
	before, err := IdentifyMachine(m)
	if err != nil {
		t.Fatal(err)
	}
	manifest := manifestOf(t, m)
	if again, _ := IdentifyMachine(m); again != before {
		t.Error("the identity changed, and the machine did not")
	}
	if n := strings.Count(manifest, format.TypeQCOW2); n != 2 {
		t.Errorf("%d qcow2 files, want the disk and its backing file: %s", n, manifest)
	}
	copied, _ := aMachine(t)
	if got := manifestOf(t, copied); got != manifest {
		t.Errorf("an equal machine is another image:\n%s\n%s", got, manifest)
	}
	for name, change := range map[string]func(m *oci.Machine){
		"domain":       func(m *oci.Machine) { m.DomainXML = []byte("<domain></domain>") },
		"architecture": func(m *oci.Machine) { m.Architecture = "arm64" },
		"disks":        func(m *oci.Machine) { m.Disks = m.Disks[:2] },
		"backing file": func(m *oci.Machine) {
			ocitest.Command(t, dir, "qemu-io", "-f", "qcow2", "-c", "write -P 8 0 64k", "base/web.qcow2")
		},
	} {
		changed := *m
		change(&changed)
		if got, err := IdentifyMachine(&changed); err != nil || got == before {
			t.Errorf("%s: the identity is the same (%v)", name, err)
		}
		if manifestOf(t, &changed) == manifest {
			t.Errorf("%s: it is the same image", name)
		}
	}
}

// A machine that starts while its disks are read changes them: no image is made of a half.
func TestMachineChanges(t *testing.T) {
	m, dir := aMachine(t)
	src, err := OpenMachine(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	manifest := &v1.Manifest{}
	raw, _, _ := src.Manifest(t.Context(), "")
	ocitest.ReadJSON(t, write(t, raw), manifest)
	ocitest.Command(t, dir, "qemu-io", "-f", "raw", "-c", "write -P 8 0 512", "data.raw")
	for _, layer := range manifest.Layers {
		blob, err := src.Blob(t.Context(), layer)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, blob)
		blob.Close()
		if changed := strings.HasPrefix(layer.MediaType, format.TypeRaw); changed != errors.Is(err, oci.ErrFormat) {
			t.Errorf("%s: %v", layer.MediaType, err)
		}
	}
}

func write(t *testing.T, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestMachineRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(t *testing.T, m *oci.Machine, dir string)
		want   error
		text   string
	}{
		"no disk file": {func(t *testing.T, m *oci.Machine, dir string) { os.Remove(m.Disks[1].Path) }, oci.ErrNotFound, "data.raw"},
		"no backing file": {func(t *testing.T, m *oci.Machine, dir string) {
			os.Remove(filepath.Join(dir, "base", "web.qcow2"))
		}, oci.ErrNotFound, "backing file"},
		"an external data file": {func(t *testing.T, m *oci.Machine, dir string) {
			ocitest.Command(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=other.raw", "web.qcow2", "1M")
		}, oci.ErrFormat, "external data file"},
		"qcow2 by name alone": {func(t *testing.T, m *oci.Machine, dir string) { m.Disks[1].Format = "qcow2" }, oci.ErrFormat, "data.raw"},
		"another format":      {func(t *testing.T, m *oci.Machine, dir string) { m.Disks[1].Format = "vmdk" }, oci.ErrFormat, "data.raw"},
		"a symbolic link": {func(t *testing.T, m *oci.Machine, dir string) {
			if err := os.Rename(m.Disks[1].Path, dir+"/x"); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("x", m.Disks[1].Path); err != nil {
				t.Fatal(err)
			}
		}, oci.ErrInvalid, "symbolic link"},
		"a directory of all": {func(t *testing.T, m *oci.Machine, dir string) {
			if err := os.Chmod(filepath.Join(dir, "base"), 0o777); err != nil {
				t.Fatal(err)
			}
		}, oci.ErrInvalid, "other users can write"},
		"a backing file that is no disk": {func(t *testing.T, m *oci.Machine, dir string) {
			if err := os.WriteFile(dir+"/key", []byte(strings.Repeat("s3cret\n", 200)), 0o600); err != nil {
				t.Fatal(err)
			}
			ocitest.Command(t, dir, "qemu-img", "rebase", "-u", "-F", "raw", "-b", "key", "web.qcow2")
		}, oci.ErrInvalid, "key is not a disk"},
		"a chain that is a loop": {func(t *testing.T, m *oci.Machine, dir string) {
			ocitest.Command(t, dir, "qemu-img", "rebase", "-u", "-F", "qcow2", "-b", "../web.qcow2", "base/web.qcow2")
		}, oci.ErrFormat, "backing chain"},
		"a name that gzip cannot have": {func(t *testing.T, m *oci.Machine, dir string) { m.Disks[1].Name = "данные.raw" }, oci.ErrFormat, "rename"},
		"a hidden name":                {func(t *testing.T, m *oci.Machine, dir string) { m.Disks[1].Name = ".data" }, oci.ErrInvalid, "data"},
		"a device":                     {func(t *testing.T, m *oci.Machine, dir string) { m.Disks[1].Path = "/dev/null" }, oci.ErrInvalid, "not a regular file"},
		"no disk":                      {func(t *testing.T, m *oci.Machine, dir string) { m.Disks = nil }, oci.ErrFormat, "no disk"},
	} {
		t.Run(name, func(t *testing.T) {
			m, dir := aMachine(t)
			c.change(t, m, dir)
			if _, err := OpenMachine(t.Context(), m); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("got %v, want %v with %q", err, c.want, c.text)
			}
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		m, _ := aMachine(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := OpenMachine(ctx, m); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}
