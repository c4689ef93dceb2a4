package unpack

import (
	"errors"
	"os"
	"testing"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/internal/ocitest"
)

// FuzzHead judges the first bytes of a disk: without a panic, and the same in whatever
// portions they come.
func FuzzHead(f *testing.F) {
	for _, seed := range [][]byte{nil, ocitest.Iso(true, 0), ocitest.Iso(true, 2048), ocitest.With(512, "EFI PART"), ocitest.With(0, "QFI\xfb"), []byte("text")} {
		f.Add(seed, uint16(100), int8(0))
	}
	f.Fuzz(func(t *testing.T, head []byte, portion uint16, content int8) {
		file, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		u := &unpacker{maxDisk: 1 << 30, dir: t.TempDir(), plan: &format.Plan{Disks: []format.Disk{{Content: format.Content(content & 3)}}}}
		whole := u.newBound(0)
		if _, err := file.Write(head); err != nil {
			t.Fatal(err)
		}
		want := whole.finish(file)
		if errors.Is(want, oci.ErrInvalid) == errors.Is(want, oci.ErrFormat) && want != nil {
			t.Errorf("got %v, want one of ErrInvalid and ErrFormat", want)
		}
		var got error
		parts := u.newBound(0)
		for at := 0; at < len(head) && got == nil; at += int(portion) + 1 {
			got = parts.admit(head[at:min(len(head), at+int(portion)+1)], int64(at))
		}
		if got == nil {
			got = parts.finish(file)
		}
		if (got == nil) != (want == nil) || parts.limit != whole.limit {
			t.Errorf("at once %v, in portions %v", want, got)
		}
	})
}
