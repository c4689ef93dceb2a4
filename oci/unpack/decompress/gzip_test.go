package decompress

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"errors"
	"io"
	"testing"
	"time"

	"gitlab-sardine-executor/oci/internal/ocitest"
)

// marking asks for marks, as gunzip wants it.
type marking struct{ g *gzipReader }

func (m *marking) Read(p []byte) (int, error) {
	n, err := m.g.Read(p)
	m.g.checkpoint()
	return n, err
}

// FuzzGunzip compares with the standard library, marks and all.
func FuzzGunzip(f *testing.F) {
	for _, content := range [][]byte{nil, []byte("hello"), ocitest.Compressible(100_000), append(ocitest.Noise(70_000), ocitest.Compressible(1000)...)} {
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
			g, err := newGzipReader(bytes.NewReader(packed), func(int64) bool { return true })
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

// TestTinyPieces: compressed streams whose smallest parts follow each other, each
// with what a decompressor does for every new one.
func TestTinyPieces(t *testing.T) {
	const size = 4 << 20
	var empty bytes.Buffer
	if err := gzip.NewWriter(&empty).Close(); err != nil {
		t.Fatal(err)
	}
	members := bytes.Repeat(empty.Bytes(), size/empty.Len())
	var members2 int64
	n := ocitest.Allocating(func() {
		g, err := newGzipReader(bytes.NewReader(members), nil)
		if err == nil {
			members2, err = io.Copy(io.Discard, g)
		}
		if err != nil {
			t.Error(err)
		}
	})
	if members2 != 0 || n > 16<<20 {
		t.Errorf("empty gzip members: %d bytes of content, %d MiB allocated", members2, n>>20)
	}

	// Empty blocks with the fixed code: 0, 01 and seven zeroes.
	var blocks bytes.Buffer
	blocks.Write(empty.Bytes()[:10])
	stream := make([]byte, size)
	for bit := 1; bit < 8*size-20; bit += 10 {
		stream[bit/8] |= 1 << (bit % 8)
	}
	blocks.Write(stream)
	took := func(open func() (io.Reader, error)) time.Duration {
		best := time.Hour
		for range 3 { // others want the processor, too
			start := time.Now()
			r, err := open()
			if err == nil {
				_, err = io.Copy(io.Discard, r)
			}
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("empty blocks: %v", err)
			}
			best = min(best, time.Since(start))
		}
		return best
	}
	ours := took(func() (io.Reader, error) { return newGzipReader(bytes.NewReader(blocks.Bytes()), nil) })
	gos := took(func() (io.Reader, error) { return flate.NewReader(bytes.NewReader(stream)), nil })
	if ours > 10*gos {
		t.Errorf("empty blocks take %v, with Go's library %v", ours, gos)
	}
}

// TestGunzipMarks goes on from every mark of a stream.
func TestGunzipMarks(t *testing.T) {
	content := append(ocitest.Compressible(600<<10), ocitest.Noise(300<<10)...)
	content = append(content, ocitest.Compressible(300<<10)...)
	var packed bytes.Buffer
	for _, part := range [][]byte{content[:500_000], content[500_000:]} {
		z, _ := gzip.NewWriterLevel(&packed, 6)
		z.Name = "disk"
		if _, err := z.Write(part); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
	}
	every := func(int64) bool { return true }
	g, err := newGzipReader(bytes.NewReader(packed.Bytes()), every)
	if err != nil {
		t.Fatal(err)
	}
	marks := 0
	for buffer := make([]byte, 100_000); ; {
		_, err := g.Read(buffer)
		if mark := g.checkpoint(); mark != nil {
			marks++
			from := bytes.NewReader(packed.Bytes()[mark.Compressed:])
			resumed, err := resumeGzip(from, *mark, every)
			if err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(&marking{resumed})
			if err != nil || !bytes.Equal(rest, content[mark.Raw:]) {
				t.Fatalf("from %d (bit %d): %v, %d bytes, want %d", mark.Compressed, mark.Bit, err, len(rest), len(content)-int(mark.Raw))
			}
		}
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if marks < 10 {
		t.Errorf("only %d marks", marks)
	}
}
