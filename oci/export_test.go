package oci

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func command(t *testing.T, dir string, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// TestExportChain packs what troubles the Python tool: a chain by absolute
// paths, and two bases of one name in two directories.
func TestExportChain(t *testing.T) {
	dir := t.TempDir()
	for _, sub := range []string{"a", "b"} {
		path := filepath.Join(dir, sub)
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
		command(t, path, "qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "8M")
		command(t, path, "qemu-io", "-f", "qcow2", "-c", "write -P 0x"+sub+"1 0 1M", "base.qcow2")
		command(t, path, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", filepath.Join(path, "base.qcow2"), "top-"+sub+".qcow2")
		command(t, path, "qemu-io", "-f", "qcow2", "-c", "write -P 0x"+sub+"2 1M 64k", "top-"+sub+".qcow2")
	}
	iso := filepath.Join(dir, "seed.iso")
	command(t, dir, "genisoimage", "-quiet", "-o", iso, "a/top-a.qcow2")
	disks := []ExportDisk{{Path: filepath.Join(dir, "a", "top-a.qcow2")}, {Path: filepath.Join(dir, "b", "top-b.qcow2")}, {Path: iso, CDROM: true}}
	guest := GuestConfig{Users: []User{{Username: "vagrant", Password: "secret"}}, Services: []Service{{Service: "ssh", Port: 2222}}}

	for name, chunk := range map[string]int64{"whole": 0, "chunked": 4096} {
		t.Run(name, func(t *testing.T) {
			layout := filepath.Join(t.TempDir(), "layout")
			to := mustParse(t, "oci:"+layout+":1")
			d, err := Export(t.Context(), to, ExportOptions{Disks: disks, Guest: guest, ChunkSize: chunk})
			if err != nil {
				t.Fatal(err)
			}
			image, err := newStore(t).Pull(t.Context(), to, PullOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if image.Digest != d {
				t.Errorf("exported %s, pulled %s", d, image.Digest)
			}
			if diff := cmp.Diff(guest, image.Guest); diff != "" {
				t.Error(diff)
			}
			var names []string
			for _, disk := range image.Disks {
				names = append(names, disk.Name+" on "+disk.Backing)
			}
			want := []string{"base.qcow2 on ", "top-a.qcow2 on base.qcow2", "base_1.qcow2 on ", "top-b.qcow2 on base_1.qcow2", "seed.iso on "}
			if diff := cmp.Diff(want, names); diff != "" {
				t.Error(diff)
			}
			for i, at := range []int{1, 3, 4} {
				disk := image.Disks[at]
				got := rawDigest(t, filepath.Join(image.Dir, disk.Name), disk.Format)
				if want := rawDigest(t, disks[i].Path, disk.Format); got != want {
					t.Errorf("%s: the guest would see other content than in %s", disk.Name, disks[i].Path)
				}
			}
			if !image.Disks[4].CDROM || !strings.Contains(string(image.DomainXML), `file="top-b.qcow2"`) || strings.Contains(string(image.DomainXML), "base") {
				t.Errorf("domain:\n%s", image.DomainXML)
			}
			copied := filepath.Join(t.TempDir(), "copied")
			command(t, dir, "skopeo", "--insecure-policy", "copy", "-q", "oci:"+layout+":1", "oci:"+copied+":1")
		})
	}
}

func TestExportRefuses(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	command(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", "external.qcow2", "1M")
	command(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "qcow2", "-b", "pool.qcow2", "loop.qcow2", "1M")
	command(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "qcow2", "-b", "loop.qcow2", "pool.qcow2", "1M")
	command(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "qcow2", "-b", "gone.qcow2", "orphan.qcow2", "1M")
	command(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "good.qcow2", "1M")
	tests := map[string][]ExportDisk{
		"no disk":       nil,
		"missing":       {{Path: file("no.qcow2")}},
		"directory":     {{Path: dir}},
		"external data": {{Path: file("external.qcow2")}},
		"loop":          {{Path: file("loop.qcow2")}},
		"no backing":    {{Path: file("orphan.qcow2")}},
		"twice":         {{Path: file("good.qcow2")}, {Path: file("good.qcow2"), Name: "other.qcow2"}},
		"one name":      {{Path: file("good.qcow2")}, {Path: file("orphan.qcow2"), Name: "good.qcow2"}},
		"hidden name":   {{Path: file("good.qcow2"), Name: ".."}},
	}
	for name, disks := range tests {
		t.Run(name, func(t *testing.T) {
			layout := filepath.Join(t.TempDir(), "layout")
			if d, err := Export(t.Context(), mustParse(t, "oci:"+layout), ExportOptions{Disks: disks}); err == nil {
				t.Errorf("exported %s", d)
			}
			if _, err := os.Stat(filepath.Join(layout, "index.json")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("left a layout: %v", err)
			}
		})
	}
}
