package decompress

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"gitlab-sardine-executor/oci/format"
)

func FuzzAppleLZ4(f *testing.F) {
	f.Add([]byte("bv4-\x05\x00\x00\x00hellobv4$"))
	f.Add([]byte(applePair))
	f.Fuzz(func(t *testing.T, packed []byte) {
		n, err := io.Copy(io.Discard, io.LimitReader(newAppleLZ4(bytes.NewReader(packed)), 64<<20))
		if err == nil && n < 64<<20 && !bytes.HasSuffix(packed, []byte("bv4$")) {
			t.Errorf("%d bytes of a stream without an end", n)
		}
	})
}

// applePair is two blocks of which the second refers back into the first.
const applePair = "bv4-\x08\x00\x00\x00abcdefgh" +
	"bv41\x0e\x00\x00\x00\x0a\x00\x00\x00" + "\x14Z\x09\x00" + "\x50tail!" + "bv4$"

func TestAppleLZ4(t *testing.T) {
	read := func(packed string) (string, error) {
		how := Options{Compression: format.AppleLZ4}
		plain, err := how.Open(strings.NewReader(packed))
		if err != nil {
			return "", err
		}
		got, err := io.ReadAll(plain)
		return string(got), err
	}
	if got, err := read(applePair); err != nil || got != "abcdefghZabcdefghtail!" {
		t.Errorf("got %q, %v", got, err)
	}
	for name, packed := range map[string]string{
		"empty": "", "cut in magic": "bv", "unknown block": "bv42", "no end": strings.TrimSuffix(applePair, "bv4$"),
		"cut in block": applePair[:20], "bytes after the end": applePair + "x", "huge": "bv4-\xff\xff\xff\xff",
		"wrong raw size": strings.Replace(applePair, "\x0e", "\x0f", 1), "reaches too far back": strings.Replace(applePair, "\x09\x00", "\x19\x00", 1),
	} {
		if got, err := read(packed); err == nil {
			t.Errorf("%s: no error, %q", name, got)
		}
	}
}
