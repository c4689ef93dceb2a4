package export

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"gitlab-sardine-executor/internal/defaultmachine"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/internal/ocitest"
	"gitlab-sardine-executor/oci/store"
)

// contentsOf returns the digests of what a guest sees of disks, by their paths.
func contentsOf(t *testing.T, disks ...Disk) map[string]digest.Digest {
	t.Helper()
	contents := map[string]digest.Digest{}
	for _, disk := range disks {
		format := "qcow2"
		if disk.CDROM {
			format = "raw"
		}
		contents[disk.Path] = ocitest.RawDigest(t, disk.Path, format)
	}
	return contents
}

// TestExportChain packs what troubles the Python tool: a chain by absolute
// paths, and two bases of one name in two directories.
func TestExportChain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, sub := range []string{"a", "b"} {
		path := filepath.Join(dir, sub)
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
		ocitest.Command(t, path, "qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "8M")
		ocitest.Command(t, path, "qemu-io", "-f", "qcow2", "-c", "write -P 0x"+sub+"1 0 1M", "base.qcow2")
		ocitest.Command(t, path, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", filepath.Join(path, "base.qcow2"), "top-"+sub+".qcow2")
		ocitest.Command(t, path, "qemu-io", "-f", "qcow2", "-c", "write -P 0x"+sub+"2 1M 64k", "top-"+sub+".qcow2")
	}
	iso := filepath.Join(dir, "seed.iso")
	ocitest.Command(t, dir, "genisoimage", "-quiet", "-o", iso, "a/top-a.qcow2")
	disks := []Disk{{Path: filepath.Join(dir, "a", "top-a.qcow2")}, {Path: filepath.Join(dir, "b", "top-b.qcow2")}, {Path: iso, CDROM: true}}
	contents := contentsOf(t, disks...)
	guest := oci.GuestConfig{Users: []oci.User{{Username: "vagrant", Password: "secret"}}, Services: []oci.Service{{Service: "ssh", Port: 2222}}}

	for name, chunk := range map[string]int64{"whole": 0, "chunked": 4096} {
		t.Run(name, func(t *testing.T) {
			layout := filepath.Join(t.TempDir(), "layout")
			to := ocitest.MustParse(t, "oci:"+layout+":1")
			d, err := Export(t.Context(), to, Options{Disks: disks, Guest: guest, ChunkSize: chunk})
			if err != nil {
				t.Fatal(err)
			}
			image, err := newStore(t).Pull(t.Context(), to, store.PullOptions{})
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
				got := ocitest.RawDigest(t, filepath.Join(image.Dir, disk.Name), disk.Format)
				if want := contents[disks[i].Path]; got != want {
					t.Errorf("%s: the guest would see other content than in %s", disk.Name, disks[i].Path)
				}
			}
			if !image.Disks[4].CDROM || !strings.Contains(string(image.DomainXML), `file="top-b.qcow2"`) || strings.Contains(string(image.DomainXML), "base") {
				t.Errorf("domain:\n%s", image.DomainXML)
			}
			if size := fmt.Sprintf("<vcpu>%d</vcpu>", defaultmachine.CPUs); !strings.Contains(string(image.DomainXML), size) {
				t.Errorf("it is not the default machine: no %s in\n%s", size, image.DomainXML)
			}
			copied := filepath.Join(t.TempDir(), "copied")
			ocitest.Command(t, dir, "skopeo", "--insecure-policy", "copy", "-q", "oci:"+layout+":1", "oci:"+copied+":1")
		})
	}
}

// TestExportNames packs files whose names cannot stay: backing files that could be
// taken for others, or that no image may have, and one with a directory in it.
func TestExportNames(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	create := func(name, backing string) {
		t.Helper()
		args := []string{"create", "-q", "-f", "qcow2"}
		if backing == "" {
			ocitest.Command(t, dir, "qemu-img", append(args, name, "1M")...)
		} else {
			ocitest.Command(t, dir, "qemu-img", append(args, "-F", "qcow2", "-b", backing, name)...)
		}
		ocitest.Command(t, dir, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P %d %dk 64k", len(name), 64*len(name)%1024), name)
	}
	disks := func(names ...string) (disks []Disk) {
		for _, name := range names {
			disks = append(disks, Disk{Path: filepath.Join(dir, name)})
		}
		return disks
	}
	create("web.qcow2", "")
	create("web-1.qcow2", "web.qcow2")
	create("web-2.qcow2", "web.qcow2")
	create(".hidden", "")
	create("on-hidden.qcow2", ".hidden")
	create("image.json", "")
	create("on-json.qcow2", "image.json")
	create("bäse.qcow2", "")
	create("on-bäse.qcow2", "bäse.qcow2")
	for name, test := range map[string]struct {
		disks []Disk
		want  string
	}{
		"clones":            {disks("web-1.qcow2", "web-2.qcow2"), "web_1.qcow2 web-1.qcow2 web-2.qcow2"},
		"a clone":           {disks("web-1.qcow2"), "web.qcow2 web-1.qcow2"},
		"names of no image": {disks("on-hidden.qcow2", "on-json.qcow2"), "backing-file on-hidden.qcow2 backing-file_1 on-json.qcow2"},
		"umlauts":           {disks("on-bäse.qcow2"), "bäse.qcow2 on-bäse.qcow2"},
		"a directory":       {[]Disk{{Path: filepath.Join(dir, "web.qcow2"), Name: "a/b.qcow2"}}, "b.qcow2"},
	} {
		contents := contentsOf(t, test.disks...)
		for _, f := range bothFormats {
			t.Run(name+"/"+f, func(t *testing.T) {
				to := ocitest.MustParse(t, "oci:"+filepath.Join(t.TempDir(), "layout"))
				if _, err := Export(t.Context(), to, Options{Disks: test.disks, Format: f}); err != nil {
					t.Fatal(err)
				}
				image, err := newStore(t).Pull(t.Context(), to, store.PullOptions{})
				if err != nil {
					t.Fatal(err)
				}
				var names []string
				for _, disk := range image.Disks {
					names = append(names, disk.Name)
				}
				if got := strings.Join(names, " "); got != test.want {
					t.Errorf("got %s, want %s", got, test.want)
				}
				for _, disk := range test.disks {
					name := filepath.Base(disk.Path)
					if disk.Name != "" {
						name = filepath.Base(disk.Name)
					}
					if ocitest.RawDigest(t, filepath.Join(image.Dir, name), "qcow2") != contents[disk.Path] {
						t.Errorf("%s: the guest would see other content", name)
					}
					if !strings.Contains(string(image.DomainXML), `file="`+name+`"`) {
						t.Errorf("the domain does not name %s:\n%s", name, image.DomainXML)
					}
				}
			})
		}
	}
}

// TestExportNameForGzip: its header knows Latin-1 alone. The other format does not care.
func TestExportNameForGzip(t *testing.T) {
	t.Parallel()
	disks := rawDisk(t, 4096)
	disks[0].Name = "диск.raw"
	to := ocitest.MustParse(t, "oci:"+filepath.Join(t.TempDir(), "layout"))
	if _, err := Export(t.Context(), to, Options{Disks: disks}); err == nil || !strings.Contains(err.Error(), "диск.raw") || !strings.Contains(err.Error(), "chunked") {
		t.Errorf("got %v, want that the name cannot be written, and what can be done", err)
	}
	if _, err := Export(t.Context(), to, Options{Disks: disks, Format: format.Chunked}); err != nil {
		t.Error(err)
	}
}

func TestExportRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	ocitest.Command(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", "external.qcow2", "1M")
	ocitest.Command(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "qcow2", "-b", "pool.qcow2", "loop.qcow2", "1M")
	ocitest.Command(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "qcow2", "-b", "loop.qcow2", "pool.qcow2", "1M")
	ocitest.Command(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "qcow2", "-b", "gone.qcow2", "orphan.qcow2", "1M")
	ocitest.Command(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "good.qcow2", "1M")
	tests := map[string][]Disk{
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
			if d, err := Export(t.Context(), ocitest.MustParse(t, "oci:"+layout), Options{Disks: disks}); err == nil {
				t.Errorf("exported %s", d)
			}
			if _, err := os.Stat(filepath.Join(layout, "index.json")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("left a layout: %v", err)
			}
		})
	}
}
