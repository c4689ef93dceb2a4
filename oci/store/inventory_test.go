package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/internal/ocitest"
)

// A testStore holds the images of three fixtures, used one, two and three hours
// ago, and a pull that was interrupted four hours ago.
type testStore struct {
	*Store
	now     time.Time
	digests map[string]digest.Digest // by fixture, and "partial"
	usage   map[string]int64
}

func fillStore(t *testing.T) testStore {
	t.Helper()
	s := testStore{newStore(t), time.Now(), map[string]digest.Digest{"partial": testDigest}, map[string]int64{}}
	partial := s.partialDir(testTurn)
	if err := os.MkdirAll(partial, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(partial, "disk"), make([]byte, 100<<10), 0o644); err != nil {
		t.Fatal(err)
	}
	s.used(t, partial, 4*time.Hour)
	for i, fixture := range []string{"single", "chain", "twodisk"} {
		image, err := s.Pull(t.Context(), ocitest.FixtureRef(t, fixture, "latest"), PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := image.Close(); err != nil {
			t.Fatal(err)
		}
		s.digests[fixture] = image.Digest
		s.used(t, image.Dir, time.Duration(i+1)*time.Hour)
	}
	stored, err := s.Inventory(t.Context())
	if err != nil || len(stored) != 4 {
		t.Fatalf("inventory: %v, %v", stored, err)
	}
	for name, d := range s.digests {
		i := slices.IndexFunc(stored, func(image StoredImage) bool { return image.Digest == d })
		s.usage[name] = stored[i].Usage
	}
	return s
}

var (
	testDigest = digest.FromString("never pulled")
	testTurn   = turnName(key{testDigest, strings.Repeat("0", 32)}, pullSource{id: "0123456789abcdef"}, 0)
)

// used sets the time of last use.
func (s testStore) used(t *testing.T, dir string, ago time.Duration) {
	t.Helper()
	at := s.now.Add(-ago)
	if err := os.Chtimes(dir, at, at); err != nil {
		t.Fatal(err)
	}
}

// names of images, in the order of the list.
func (s testStore) names(images []StoredImage) []string {
	names := []string{}
	for _, image := range images {
		for name, d := range s.digests {
			if d == image.Digest {
				names = append(names, name)
			}
		}
	}
	return names
}

func TestInventory(t *testing.T) {
	t.Parallel()
	s := fillStore(t)
	stored, err := s.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, image := range stored {
		if image.Digest == testDigest {
			if image.Image != nil || image.References != nil || image.Usage < 100<<10 {
				t.Errorf("interrupted pull: %+v", image)
			}
			continue
		}
		if image.Image == nil || len(image.References) != 1 || image.Usage <= 0 {
			t.Errorf("%+v", image)
		}
	}
	if got := s.usage["twodisk"]; got < s.usage["single"] {
		t.Errorf("twodisk takes %d bytes, single %d", got, s.usage["single"])
	}
}

func TestPrune(t *testing.T) {
	t.Parallel()
	nobody := func(digest.Digest) bool { return false }
	tests := map[string]struct {
		options func(s testStore) PruneOptions
		want    []string // removed, in this order
	}{
		"all":  {func(s testStore) PruneOptions { return PruneOptions{UnusedSince: s.now, Keep: KeepNothing} }, []string{"partial", "twodisk", "chain", "single"}},
		"zero": {func(s testStore) PruneOptions { return PruneOptions{} }, []string{}},
		"old": {func(s testStore) PruneOptions {
			return PruneOptions{UnusedSince: s.now.Add(-150 * time.Minute), Keep: KeepNothing}
		}, []string{"partial", "twodisk"}},
		"keep all": {func(s testStore) PruneOptions { return PruneOptions{UnusedSince: s.now, Keep: 1 << 40} }, []string{}},
		"keep some": {func(s testStore) PruneOptions {
			return PruneOptions{UnusedSince: s.now, Keep: s.usage["single"] + s.usage["chain"]}
		}, []string{"partial", "twodisk"}},
		"keep none": {func(s testStore) PruneOptions { return PruneOptions{UnusedSince: s.now, Keep: 0} }, []string{"partial", "twodisk", "chain", "single"}},
		"in use": {func(s testStore) PruneOptions {
			return PruneOptions{UnusedSince: s.now, Keep: KeepNothing, InUse: s.is("chain")}
		}, []string{"partial", "twodisk", "single"}},
		"in use counts": {func(s testStore) PruneOptions {
			return PruneOptions{UnusedSince: s.now, Keep: s.usage["twodisk"] + s.usage["single"], InUse: s.is("twodisk")}
		}, []string{"partial", "chain"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := fillStore(t)
			o := test.options(s)
			if o.InUse == nil {
				o.InUse = nobody
			}
			for _, dryRun := range []bool{true, false} {
				o.DryRun = dryRun
				removed, err := s.Prune(t.Context(), o)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(test.want, s.names(removed)); diff != "" {
					t.Error(diff)
				}
				s.checkKept(t, test.want, dryRun)
			}
		})
	}
}

func (s testStore) is(name string) func(digest.Digest) bool {
	return func(d digest.Digest) bool { return d == s.digests[name] }
}

// checkKept looks whether what was removed is gone, with its names, and all else
// is whole.
func (s testStore) checkKept(t *testing.T, removed []string, dryRun bool) {
	t.Helper()
	for name := range s.digests {
		if name == "partial" {
			_, err := os.Stat(s.partialDir(testTurn))
			if gone := errors.Is(err, os.ErrNotExist); gone != (slices.Contains(removed, name) && !dryRun) {
				t.Errorf("interrupted pull: %v", err)
			}
			continue
		}
		_, err := s.Lookup(ocitest.FixtureRef(t, name, "latest"), "")
		if gone := errors.Is(err, oci.ErrNotFound); gone != (slices.Contains(removed, name) && !dryRun) {
			t.Errorf("%s: %v", name, err)
		}
	}
	entries, err := os.ReadDir(filepath.Join(s.root, imagesDir))
	if err != nil {
		t.Fatal(err)
	}
	references, err := os.ReadDir(filepath.Join(s.root, referencesDir))
	if err != nil {
		t.Fatal(err)
	}
	if images := len(entries); !dryRun && images != 4-len(removed) {
		t.Errorf("%d images left, %d were removed", images, len(removed))
	}
	if !dryRun && len(references) > len(entries) {
		t.Errorf("%d names for %d images", len(references), len(entries))
	}
}

// TestPruneHeld: an image that somebody is about to use stays, and so does one
// that was used since it was listed.
func TestPruneHeld(t *testing.T) {
	t.Parallel()
	s := fillStore(t)
	held, err := s.Pull(t.Context(), ocitest.FixtureRef(t, "chain", "latest"), PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.used(t, held.Dir, 2*time.Hour)
	o := PruneOptions{UnusedSince: s.now, Keep: KeepNothing, InUse: func(d digest.Digest) bool {
		if d == s.digests["single"] {
			// A job comes, pulls, starts its machine and lets go.
			image, err := s.Pull(t.Context(), ocitest.FixtureRef(t, "single", "latest"), PullOptions{})
			if err != nil {
				t.Error(err)
				return true
			}
			image.Close()
		}
		return false
	}}
	removed, err := s.Prune(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"partial", "twodisk"}, s.names(removed)); diff != "" {
		t.Error(diff)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	o.InUse = func(digest.Digest) bool { return false }
	removed, err = s.Prune(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"chain"}, s.names(removed)); diff != "" {
		t.Error(diff)
	}
}

// TestPruneKilled: what a prune that was killed left is removed by the next.
func TestPruneKilled(t *testing.T) {
	t.Parallel()
	s := fillStore(t)
	left := filepath.Join(s.root, imagesDir, removedPrefix+key{digest: testDigest}.String())
	if err := os.Mkdir(left, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prune(t.Context(), PruneOptions{InUse: func(digest.Digest) bool { return true }}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v", left, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Inventory(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
