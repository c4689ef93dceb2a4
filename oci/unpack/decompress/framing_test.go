package decompress

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"gitlab-sardine-executor/oci/format"
)

// packedBy lets a tool pack content.
func packedBy(t *testing.T, content string, tool ...string) []byte {
	t.Helper()
	cmd := exec.Command(tool[0], tool[1:]...)
	cmd.Stdin = strings.NewReader(content)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v", tool, err)
	}
	return out
}

// skippable is a skippable frame of zstd (RFC 8878, 3.1.2).
func skippable(content string) []byte {
	frame := binary.LittleEndian.AppendUint32(nil, 0x184d2a53)
	return append(binary.LittleEndian.AppendUint32(frame, uint32(len(content))), content...)
}

// namedGzip is a member with all optional fields but the checksum of the header.
func namedGzip(t *testing.T, content string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Name, z.Comment, z.Extra = "disk.img", "a comment", []byte("extra")
	if _, err := io.WriteString(z, content); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestFraming unpacks what gzip, zstd, xz and bzip2 unpack, and refuses what they refuse.
func TestFraming(t *testing.T) {
	const content = "the first part of a disk, and the second"
	const half = len(content) / 2
	zeros, garbage := make([]byte, 8), []byte("garbage!")
	pack := func(tool string) (whole, first, second, empty []byte) {
		return packedBy(t, content, tool, "-c"), packedBy(t, content[:half], tool, "-c"), packedBy(t, content[half:], tool, "-c"), packedBy(t, "", tool, "-c")
	}
	gz, gz1, gz2, gz0 := pack("gzip")
	zst, zst1, zst2, zst0 := pack("zstd")
	xz, xz1, xz2, xz0 := pack("xz")
	bz, bz1, bz2, bz0 := pack("bzip2")
	tests := map[string]struct {
		packed []byte
		damage string // part of the error; empty for content
	}{
		"gzip, members and empty members":    {slices.Concat(gz0, gz1, gz0, gz2, gz0), ""},
		"gzip, zeros at the end":             {slices.Concat(gz, zeros), ""},
		"gzip, one zero at the end":          {slices.Concat(gz, zeros[:1]), ""},
		"gzip, all fields of the header":     {namedGzip(t, content), ""},
		"gzip, garbage at the end":           {slices.Concat(gz, garbage), "after the end of a gzip stream"},
		"gzip, zeros and garbage at the end": {slices.Concat(gz, zeros, garbage), "after the end of a gzip stream"},
		"gzip, a member after zeros":         {slices.Concat(gz1, zeros, gz2), "after the end of a gzip stream"},
		"gzip, cut in a later header":        {slices.Concat(gz1, gz2[:5]), "unexpected EOF"},
		"zstd, frames and empty frames":      {slices.Concat(zst0, zst1, zst0, zst2, zst0), ""},
		"zstd, skippable frames":             {slices.Concat(skippable("size"), skippable(""), zst1, skippable("x"), zst2, skippable("end")), ""},
		"zstd, a skippable frame cut off":    {slices.Concat(zst, skippable("long enough")[:10]), "EOF"},
		"zstd, zeros at the end":             {slices.Concat(zst, zeros), "magic"},
		"zstd, without size and checksum":    {packedBy(t, content, "zstd", "-c", "--no-check", "--no-content-size", "-19"), ""},
		"xz, streams and empty streams":      {slices.Concat(xz0, xz1, xz0, xz2), ""},
		"xz, padding":                        {slices.Concat(xz1, zeros, xz2, zeros[:4]), ""},
		"xz, padding of 7 bytes":             {slices.Concat(xz, zeros[:7]), "xz"},
		"xz, garbage at the end":             {slices.Concat(xz, garbage), "xz"},
		"bzip2":                              {bz, ""},
		"bzip2, streams and empty streams":   {slices.Concat(bz1, bz0, bz2), ""},
		"bzip2, cut off":                     {bz[:len(bz)-6], "EOF"},
		"bzip2, a wrong checksum":            {append(bz[:len(bz)-3:len(bz)-3], 1, 2, 3), "checksum"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			stream, err := Options{Compression: format.Maybe, Window: ZstdWindow}.OpenAhead(bytes.NewReader(test.packed))
			var got []byte
			if err == nil {
				got, err = io.ReadAll(stream)
				if closed := stream.Close(); closed != nil {
					t.Error(closed)
				}
			}
			switch {
			case test.damage == "" && (err != nil || string(got) != content):
				t.Errorf("got %q, %v; want %q", got, err, content)
			case test.damage != "" && (err == nil || !strings.Contains(err.Error(), test.damage)):
				t.Errorf("got %q, %v; want an error with %q", got, err, test.damage)
			}
		})
	}
}
