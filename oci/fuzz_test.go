package oci

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"gitlab-sardine-executor/oci/format"
)

func FuzzGuestConfig(f *testing.F) {
	f.Add([]byte(`{"users":[{"username":"vagrant","password":"vagrant","port":22}],"services":[{"service":"ssh","port":22,"protocol":"tcp"}],"more":1}`))
	f.Add([]byte(`{"users":[{"username":"a","port":-1}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		guest, err := ParseGuestConfig(raw)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Error(err)
			}
			return
		}
		if port := guest.SSHPort(); port < 1 || port > 65535 {
			t.Errorf("port %d", port)
		}
		for _, user := range guest.Users {
			if user.Username == "" {
				t.Error("a user without a name")
			}
		}
	})
}

// FuzzGunzip compares with the standard library, marks and all.
func FuzzGunzip(f *testing.F) {
	for _, content := range [][]byte{nil, []byte("hello"), compressible(100_000), append(noise(70_000), compressible(1000)...)} {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		z.Name = "name"
		_, _ = z.Write(content)
		_ = z.Close()
		f.Add(b.Bytes())
		f.Add(append(bytes.Clone(b.Bytes()), b.Bytes()...))
	}
	const limit = 1 << 20
	f.Fuzz(func(t *testing.T, packed []byte) {
		want, wantErr := func() ([]byte, error) {
			z, err := gzip.NewReader(bytes.NewReader(packed))
			if err != nil {
				return nil, err
			}
			return io.ReadAll(io.LimitReader(z, limit))
		}()
		got, gotErr := func() ([]byte, error) {
			g, err := newGunzip(bytes.NewReader(packed), func(int64) bool { return true })
			if err != nil {
				return nil, err
			}
			return io.ReadAll(io.LimitReader(&marking{g}, limit))
		}()
		if (wantErr == nil) != (gotErr == nil) || wantErr == nil && !bytes.Equal(want, got) {
			t.Errorf("got %d bytes, %v; want %d, %v", len(got), gotErr, len(want), wantErr)
		}
	})
}

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

// FuzzTree looks for the disk in any two tar archives, one upon the other.
func FuzzTree(f *testing.F) {
	f.Add([]byte(nil), []byte(nil))
	t := &testing.T{}
	f.Add(tarOf(t, tarEntry{name: "disk/a", content: "hello"}), tarOf(t, tarEntry{name: "disk/.wh.a"}, tarEntry{name: "./disk/b", content: "x"}))
	f.Add(tarOf(t, tarEntry{name: "disk/"}, tarEntry{name: "/disk/a", content: "hello"}), tarOf(t, tarEntry{name: "disk/.wh..wh..opq"}, tarEntry{name: "disk/l", link: "a"}))
	f.Fuzz(func(t *testing.T, lower, upper []byte) {
		file, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		u := &unpacker{maxDisk: 1 << 20, plan: &format.Plan{Disks: make([]format.Disk, 1)}}
		r := &treeReader{
			u: u, bound: u.newBound(0), other: 1 << 20, tree: &format.Tree{Path: "disk", Directory: true}, file: file,
			hidden: map[string]bool{}, opaque: map[string]bool{},
		}
		for _, layer := range [][]byte{upper, lower} {
			if err := r.readTar(bytes.NewReader(layer)); err != nil {
				return
			}
		}
		for _, name := range r.found {
			if strings.Contains(name, "/") {
				t.Errorf("found %q", name)
			}
		}
		if info, err := file.Stat(); err != nil || info.Size() != r.state.Size {
			t.Errorf("%+v, %v; want %d bytes", info, err, r.state.Size)
		}
	})
}

// applePair is two blocks of which the second refers back into the first.
const applePair = "bv4-\x08\x00\x00\x00abcdefgh" +
	"bv41\x0e\x00\x00\x00\x0a\x00\x00\x00" + "\x14Z\x09\x00" + "\x50tail!" + "bv4$"

func TestAppleLZ4(t *testing.T) {
	read := func(packed string) (string, error) {
		how := decompression{compression: format.AppleLZ4}
		plain, err := how.direct(strings.NewReader(packed))
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

// FuzzHead judges the first bytes of a disk: without a panic, and the same in whatever
// portions they come.
func FuzzHead(f *testing.F) {
	for _, seed := range [][]byte{nil, iso(true, 0), iso(true, 2048), with(512, "EFI PART"), with(0, "QFI\xfb"), []byte("text")} {
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
		if errors.Is(want, ErrHostile) == errors.Is(want, ErrFormat) && want != nil {
			t.Errorf("got %v, want one of ErrHostile and ErrFormat", want)
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
