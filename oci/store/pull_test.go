package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/internal/ocitest"
	"gitlab-sardine-executor/oci/transfer"
)

func newStore(t *testing.T) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestPullSardinecake unpacks what the Python tool wrote, bit for bit. All of it is
// in testdata, so that nothing is skipped where there is nothing but this clone.
func TestPullSardinecake(t *testing.T) {
	t.Parallel()
	for _, fixture := range []string{"single", "chunked", "chain", "twodisk", "novmconfig", "multitag"} {
		t.Run(fixture, func(t *testing.T) {
			want := ocitest.ReadExpected(t, fixture)
			for _, manifest := range want.Manifests {
				image, err := newStore(t).Pull(t.Context(), ocitest.FixtureRef(t, fixture, manifest.Tag), PullOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if image.Digest != manifest.Manifest || image.Format != "sardinecake" || image.Architecture != "amd64" || image.Created.IsZero() || len(image.DomainXML) == 0 {
					t.Errorf("image: %+v", image)
				}
				if hasUser := len(image.Guest.Users) == 1; hasUser == (fixture == "novmconfig") {
					t.Errorf("guest: %+v", image.Guest)
				}
				checkFiles(t, image, want, manifest.Tag)
			}
		})
	}
}

func checkFiles(t *testing.T, image *oci.Image, want ocitest.Expected, tag string) {
	t.Helper()
	i := 0
	for _, file := range want.Files {
		if file.Tag != "" && file.Tag != tag {
			continue
		}
		if i >= len(image.Disks) {
			t.Fatalf("no disk for %s", file.Name)
		}
		disk := image.Disks[i]
		i++
		if disk.Name != file.Name || disk.Format != file.Format || disk.CDROM != (file.Device == "cdrom") ||
			disk.Size != file.FileSize || disk.VirtualSize != file.VirtualSize || disk.Digest.Encoded() != file.FileSHA256 {
			t.Errorf("disk %+v, want %+v", disk, file)
		}
		path := filepath.Join(image.Dir, disk.Name)
		if got := ocitest.FileDigest(t, path).Encoded(); got != file.FileSHA256 {
			t.Errorf("%s: sha256 %s, want %s", path, got, file.FileSHA256)
		}
		if got := ocitest.RawDigest(t, path, disk.Format).Encoded(); got != file.RawSHA256 {
			t.Errorf("%s: raw content has sha256 %s, want %s", path, got, file.RawSHA256)
		}
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o444 {
			t.Errorf("%s: %v, %v; want mode 0444", path, info.Mode(), err)
		}
	}
	if i != len(image.Disks) {
		t.Errorf("%d disks, want %d", len(image.Disks), i)
	}
}

func TestPushPullFetch(t *testing.T) {
	t.Parallel()
	f := ocitest.NewFaultyRegistry(t)
	ref := ocitest.MustParse(t, f.Host+"/vms/chain:1")
	d, err := transfer.Push(t.Context(), ocitest.FixtureRef(t, "chain", "latest"), ref, transfer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := ocitest.ReadExpected(t, "chain")
	if d != want.Manifests[0].Manifest {
		t.Errorf("pushed %s, want %s", d, want.Manifests[0].Manifest)
	}
	store := newStore(t)
	image, err := store.Pull(t.Context(), ref, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	checkFiles(t, image, want, "latest")
	if image.Disks[1].Backing != "base.qcow2" {
		t.Errorf("backing of %s is %q", image.Disks[1].Name, image.Disks[1].Backing)
	}

	// Nothing new: two requests when asked, none otherwise.
	for policy, most := range map[oci.PullPolicy]int64{oci.PullAlways: 2, oci.PullIfNotPresent: 0, oci.PullNever: 0} {
		before := f.Requests.Load()
		again, err := store.Pull(t.Context(), ref, PullOptions{Policies: []oci.PullPolicy{policy}})
		if err != nil || again.Digest != image.Digest || again.Dir != image.Dir {
			t.Errorf("%s again: %+v, %v", policy, again, err)
		}
		if n := f.Requests.Load() - before; n > most {
			t.Errorf("%s made %d requests, want at most %d", policy, n, most)
		}
	}
	images, err := store.List(t.Context())
	if err != nil || len(images) != 1 || images[0].Digest != image.Digest || !bytes.Equal(images[0].DomainXML, image.DomainXML) {
		t.Errorf("list: %v, %v", images, err)
	}
	byDigest := ocitest.MustParse(t, f.Host+"/vms/chain@"+d.String())
	if _, err := store.Lookup(byDigest, ""); err != nil {
		t.Error(err)
	}

	layout := filepath.Join(t.TempDir(), "layout")
	fetched, err := transfer.Fetch(t.Context(), ref, ocitest.MustParse(t, "oci:"+layout), transfer.Options{})
	if err != nil || fetched != d {
		t.Fatalf("fetch: %s, %v", fetched, err)
	}
	if image, err = newStore(t).Pull(t.Context(), ocitest.MustParse(t, "oci:"+layout+":1"), PullOptions{}); err != nil {
		t.Fatal(err)
	}
	checkFiles(t, image, want, "latest")
}

func TestPullErrors(t *testing.T) {
	t.Parallel()
	host := ocitest.NewFaultyRegistry(t).Host
	store := newStore(t)
	tests := map[string]struct {
		ref      oci.Reference
		policies []oci.PullPolicy
		want     error
	}{
		"no repository":  {ocitest.MustParse(t, host+"/no/such:1"), nil, oci.ErrNotFound},
		"no layout":      {ocitest.MustParse(t, "oci:/no/such"), nil, oci.ErrNotFound},
		"no tag":         {ocitest.FixtureRef(t, "multitag", "v3"), nil, oci.ErrNotFound},
		"not in store":   {ocitest.MustParse(t, host+"/no/such:1"), []oci.PullPolicy{oci.PullNever}, oci.ErrNotFound},
		"every policy":   {ocitest.MustParse(t, host+"/no/such:1"), []oci.PullPolicy{oci.PullAlways, oci.PullIfNotPresent}, oci.ErrNotFound},
		"no such digest": {ocitest.MustParse(t, host+"/no/such@"+digest.FromString("").String()), nil, oci.ErrNotFound},
		"empty":          {oci.Reference{}, nil, oci.ErrReference},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := store.Pull(t.Context(), test.ref, PullOptions{Policies: test.policies}); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
	several := ocitest.MustParse(t, "oci:"+filepath.Join("..", "testdata", "sardinecake", "multitag", "oci"))
	if _, err := store.Pull(t.Context(), several, PullOptions{}); !errors.Is(err, oci.ErrReference) || !strings.Contains(err.Error(), `"v1"`) {
		t.Errorf("layout with several tags: %v", err)
	}
}

// TestPullDamaged changes one byte of each blob in turn, or cuts it off.
func TestPullDamaged(t *testing.T) {
	t.Parallel()
	source := filepath.Join("..", "testdata", "sardinecake", "chunked", "oci")
	blobs, err := filepath.Glob(filepath.Join(source, "blobs", "sha256", "*"))
	if err != nil || len(blobs) < 5 {
		t.Fatal(blobs, err)
	}
	for _, blob := range blobs {
		content, err := os.ReadFile(blob)
		if err != nil {
			t.Fatal(err)
		}
		flipped := bytes.Clone(content)
		flipped[len(flipped)/2] ^= 0x10
		for how, damaged := range map[string][]byte{
			"flipped": flipped, "cut off": content[:len(content)-1], "longer": append(bytes.Clone(content), 0), "missing": nil,
		} {
			t.Run(filepath.Base(blob)[:8]+"/"+how, func(t *testing.T) {
				layout := filepath.Join(t.TempDir(), "layout")
				if err := os.CopyFS(layout, os.DirFS(source)); err != nil {
					t.Fatal(err)
				}
				name, want := filepath.Join(layout, "blobs", "sha256", filepath.Base(blob)), oci.ErrInvalid
				if damaged == nil {
					want, err = oci.ErrNotFound, os.Remove(name)
				} else {
					err = os.WriteFile(name, damaged, 0o644)
				}
				if err != nil {
					t.Fatal(err)
				}
				store := newStore(t)
				if _, err := store.Pull(t.Context(), ocitest.MustParse(t, "oci:"+layout+":latest"), PullOptions{}); !errors.Is(err, want) {
					t.Errorf("got %v, want %v", err, want)
				}
				ocitest.AssertEmpty(t, filepath.Join(store.Root(), imagesDir))
			})
		}
	}
}

// TestPullOnce lets many pull one image into one store at the same time.
func TestPullOnce(t *testing.T) {
	t.Parallel()
	f := ocitest.NewFaultyRegistry(t)
	ref := ocitest.MustParse(t, f.Host+"/vms/single:1")
	if _, err := transfer.Push(t.Context(), ocitest.FixtureRef(t, "single", "latest"), ref, transfer.Options{}); err != nil {
		t.Fatal(err)
	}
	store := newStore(t)
	before := f.Requests.Load()
	var group sync.WaitGroup
	for range 10 {
		group.Go(func() {
			if _, err := store.Pull(t.Context(), ref, PullOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	// Each asks for the manifest (two requests) and for the config, by which the image is
	// known; one gets three layers.
	if n := f.Requests.Load() - before; n > 10*3+3 {
		t.Errorf("%d requests for ten pulls of one image", n)
	}
}

// waitingFunc is a Progress that is called when the pull waits for another.
type waitingFunc func()

func (f waitingFunc) Waiting(string)                 { f() }
func (waitingFunc) Start(string, int64) oci.Transfer { return oci.ProgressOrDiscard(nil).Start("", 0) }

// TestPullLastOfTwo: of two entries with one tag, the last was meant.
func TestPullLastOfTwo(t *testing.T) {
	t.Parallel()
	layout := filepath.Join(t.TempDir(), "layout")
	if err := os.CopyFS(layout, os.DirFS(filepath.Join("..", "testdata", "sardinecake", "multitag", "oci"))); err != nil {
		t.Fatal(err)
	}
	index := filepath.Join(layout, "index.json")
	raw, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(index, bytes.ReplaceAll(raw, []byte(`"v1"`), []byte(`"v2"`)), 0o644); err != nil {
		t.Fatal(err)
	}
	image, err := newStore(t).Pull(t.Context(), ocitest.MustParse(t, "oci:"+layout+":v2"), PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	manifests := ocitest.ReadExpected(t, "multitag").Manifests
	if want := manifests[len(manifests)-1].Manifest; image.Digest != want {
		t.Errorf("got %s, want the last entry, %s", image.Digest, want)
	}
}
