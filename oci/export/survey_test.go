package export

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/store"
)

// An export with a survey reads only the chunks that the layout lacks, and makes the same image.
func TestSurvey(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	for n := range 60_000 {
		fmt.Fprintf(&text, "line %d of a disk\n", n*7919%60_000)
	}
	content := []byte(text.String())
	content[510], content[511] = 0x55, 0xaa // a boot sector
	clear(content[3<<17 : 4<<17])
	for name, test := range map[string]struct {
		empty   bool  // the layout has no image yet
		lost    int   // a chunk whose blob is gone after the survey; 0 for none
		changed int64 // where the disk changes after the survey; 0 for nowhere
		refused bool
	}{
		"all there":               {},
		"nothing there":           {empty: true},
		"one is gone":             {lost: 2},
		"what is not read again":  {changed: 1 << 17},
		"one is gone and changed": {lost: 1, changed: 1 << 17, refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "layout")
			path := filepath.Join(t.TempDir(), "disk.raw")
			if err := os.WriteFile(path, content, 0o644); err != nil {
				t.Fatal(err)
			}
			o := Options{Disks: []Disk{{Path: path, Format: "raw"}}, Format: format.Chunked, ChunkSize: 1 << 17}
			if !test.empty {
				best := o
				best.Level = 7
				if _, err := Export(t.Context(), layoutRef(t, dir, "best"), best); err != nil {
					t.Fatal(err)
				}
			}
			var err error
			if o.Survey, err = TakeSurvey(t.Context(), layoutRef(t, dir, "new"), o); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(dir); test.empty && err == nil {
				t.Error("the survey has made the layout")
			}
			if test.lost > 0 {
				chunk := chunksOf(t, layoutRef(t, dir, "best"))[test.lost]
				if err := os.Remove(filepath.Join(dir, "blobs", "sha256", chunk.Digest.Encoded())); err != nil {
					t.Fatal(err)
				}
			}
			if test.changed > 0 {
				other := bytes.Clone(content)
				other[test.changed] ^= 1
				if err := os.WriteFile(path, other, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			_, err = Export(t.Context(), layoutRef(t, dir, "new"), o)
			if test.refused {
				if err == nil || !strings.Contains(err.Error(), "it has changed at 131072") {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !test.empty {
				best, again := chunksOf(t, layoutRef(t, dir, "best")), chunksOf(t, layoutRef(t, dir, "new"))
				for i := range best {
					if (best[i].Digest == again[i].Digest) == (i == test.lost && test.lost > 0) {
						t.Errorf("chunk %d: %v, was %v", i, again[i], best[i])
					}
				}
			}
			images, err := store.Open(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			image, err := images.Pull(t.Context(), layoutRef(t, dir, "new"), store.PullOptions{Policies: []oci.PullPolicy{oci.PullAlways}})
			if err != nil {
				t.Fatal(err)
			}
			defer image.Close()
			if got, err := os.ReadFile(filepath.Join(image.Dir, "disk.raw")); err != nil || !bytes.Equal(got, content) {
				t.Errorf("another disk came out: %d bytes, %v", len(got), err)
			}
		})
	}
}

// A survey refuses what an export refuses.
func TestSurveyRefuses(t *testing.T) {
	t.Parallel()
	o := Options{Disks: []Disk{{Path: os.Args[0], Format: "raw"}}, Format: format.Chunked, ChunkSize: -1}
	if _, err := TakeSurvey(t.Context(), layoutRef(t, t.TempDir(), "new"), o); err == nil || !strings.Contains(err.Error(), "chunks of -1 bytes") {
		t.Errorf("got %v", err)
	}
}
