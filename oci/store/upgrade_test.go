package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/internal/ocitest"
)

// asOlder makes a store's only image one that an older version stored, under another format
// and with other names of disks if they are not empty.
func asOlder(t *testing.T, s *Store, formatName, disk string) {
	t.Helper()
	images, err := s.List(t.Context())
	if err != nil || len(images) != 1 {
		t.Fatal(images, err)
	}
	image := images[0]
	older := s.imageDir(key{digest: image.Digest})
	if err := os.Rename(image.Dir, older); err != nil {
		t.Fatal(err)
	}
	image.Reading = ""
	if formatName != "" {
		image.Format = formatName
	}
	if disk != "" {
		if err := os.Rename(filepath.Join(older, image.Disks[0].Name), filepath.Join(older, disk)); err != nil {
			t.Fatal(err)
		}
		image.Disks[0].Name = disk
	}
	rewriteJSON(t, filepath.Join(older, oci.ImageFile), image)
	records, err := filepath.Glob(filepath.Join(s.Root(), referencesDir, "*.json"))
	if err != nil || len(records) == 0 {
		t.Fatal(records, err)
	}
	for _, path := range records {
		var record referenceRecord
		ocitest.ReadJSON(t, path, &record)
		record.Image = ""
		rewriteJSON(t, path, record)
	}
}

func rewriteJSON(t *testing.T, path string, v any) {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.RemoveAll(path), os.WriteFile(path, raw, 0o444)); err != nil {
		t.Fatal(err)
	}
}

// TestUpgrade: images that an older version stored stay in use if they are what their manifest
// means, and are pulled again, without touching the old files, if an index may have had a say.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	disk := ocitest.Qcow2File(t)
	artifact := func(p *ocitest.PlainRegistry, typed, layerType string) v1.Descriptor {
		config, layer := p.Blob(v1.MediaTypeEmptyJSON, []byte("{}")), p.Blob(layerType, disk)
		return p.Put(v1.MediaTypeImageManifest, `{"schemaVersion":2`+typed+`,"config":`+ocitest.Quote(config, "")+`,"layers":[`+ocitest.Quote(layer, "")+`]}`, "1")
	}
	container := func(t *testing.T, p *ocitest.PlainRegistry) v1.Descriptor {
		d, _ := ocitest.ContainerDisk(t, disk, p)
		return d
	}
	diskImage := func(_ *testing.T, p *ocitest.PlainRegistry) v1.Descriptor {
		return artifact(p, `,"artifactType":"application/vnd.diskimage.qcow2"`, "application/octet-stream")
	}
	plain := func(_ *testing.T, p *ocitest.PlainRegistry) v1.Descriptor {
		return artifact(p, "", "application/vnd.qemu.qcow2")
	}
	tests := map[string]struct {
		put          func(*testing.T, *ocitest.PlainRegistry) v1.Descriptor
		format, disk string
		offline      bool // usable without the manifest
		online       bool // usable with it
	}{
		"container disk":                    {container, "", "", true, true},
		"plain artifact":                    {plain, "", "", true, true},
		"disk image":                        {diskImage, "", "", false, true},
		"disk image, read as raw":           {diskImage, "diskimage", "disk.raw", false, false},
		"machine-os over a container":       {container, "machine-os", "disk.qcow2", false, false},
		"machine-os over an artifact":       {plain, "machine-os", "", false, false},
		"disk image over a container":       {container, "diskimage", "disk.raw", false, false},
		"KubeVirt over a container":         {container, "kubevirt", "disk-0.raw", false, false},
		"a format that this manifest isn't": {plain, "eve", "", true, false},
	}
	for name, test := range tests {
		for _, by := range []string{"tag", "digest"} {
			t.Run(fmt.Sprintf("%s, by %s", name, by), func(t *testing.T) {
				p := ocitest.NewPlainRegistry(t)
				ocitest.TrustInsecure(t, p.Host)
				m := test.put(t, p)
				text := p.Host + "/vms/x:1"
				if by == "digest" {
					text = p.Host + "/vms/x@" + m.Digest.String()
				}
				ref := ocitest.MustParse(t, text)
				s := newStore(t)
				pull := func(policy oci.PullPolicy) (*oci.Image, error) {
					image, err := s.Pull(t.Context(), ref, PullOptions{Policies: []oci.PullPolicy{policy}, Architecture: "amd64"})
					if err == nil {
						err = image.Close()
					}
					return image, err
				}
				if _, err := pull(oci.PullAlways); err != nil {
					t.Fatal(err)
				}
				asOlder(t, s, test.format, test.disk)
				older := s.imageDir(key{digest: m.Digest})
				if image, err := pull(oci.PullNever); test.offline != (err == nil) || err != nil && !errors.Is(err, oci.ErrNotFound) {
					t.Errorf("never: %+v, %v", image, err)
				}
				image, err := pull(oci.PullAlways)
				if err != nil {
					t.Fatal(err)
				}
				if adopted := image.Dir == older; adopted != test.online {
					t.Errorf("always: %s, want the older one: %v", image.Dir, test.online)
				}
				if _, err := os.Stat(filepath.Join(older, oci.ImageFile)); err != nil {
					t.Errorf("the older image, on which machines may stand: %v", err)
				}
				// Known from now on.
				again, err := pull(oci.PullNever)
				if err != nil || test.online != (again.Dir == older) {
					t.Errorf("never, after that: %+v, %v", again, err)
				}
				checkOlderInventory(t, s, image, test.online)
			})
		}
	}
}

// checkOlderInventory: the image that the name stands for now has it, and can be removed.
func checkOlderInventory(t *testing.T, s *Store, image *oci.Image, adopted bool) {
	t.Helper()
	stored, err := s.Inventory(t.Context())
	if want := map[bool]int{true: 1, false: 2}[adopted]; err != nil || len(stored) != want {
		t.Fatalf("inventory: %+v, %v; want %d", stored, err, want)
	}
	for _, entry := range stored {
		if named := len(entry.References) == 1; entry.Image == nil || named != (entry.Image.Dir == image.Dir) {
			t.Errorf("inventory: %+v", entry)
		}
	}
	removed, err := s.Prune(t.Context(), PruneOptions{UnusedSince: stored[0].LastUsed.AddDate(1, 0, 0), Keep: KeepNothing, InUse: func(digest.Digest) bool { return false }})
	if err != nil || len(removed) != len(stored) {
		t.Errorf("removed %+v, %v", removed, err)
	}
}

// TestKeyNames: what is no image's directory is left alone.
func TestKeyNames(t *testing.T) {
	t.Parallel()
	d := digest.FromString("x")
	older, now := "sha256-"+d.Encoded(), "sha256-"+d.Encoded()+".0123456789abcdef0123456789abcdef"
	tests := map[string]struct {
		ok   bool
		rest string
	}{
		older: {true, ""}, now: {true, ""}, now + ".0123.0": {true, "0123.0"},
		"": {}, "sha256": {}, "sha256-": {}, older[:40]: {}, older + ".": {}, older + ".x": {}, older + ".0123456789ABCDEF0123456789abcdef": {},
		"md5-00": {}, ".removed-" + now: {}, now + "0": {},
	}
	for name, want := range tests {
		k, rest, ok := parseKey(name)
		if ok != want.ok || rest != want.rest {
			t.Errorf("%q: %v, %q", name, ok, rest)
		}
		if ok && rest == "" && k.String() != name {
			t.Errorf("%q is read as %q", name, k)
		}
	}
}
