package inflate

import (
	"bufio"
	"bytes"
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	kflate "github.com/klauspost/compress/flate"
)

// contents are of several kinds, each of which makes a compressor use other
// features of the format.
func contents(size int) map[string][]byte {
	rng := rand.New(rand.NewChaCha8([32]byte{7}))
	random, text, mixed, skewed := make([]byte, size), make([]byte, 0, size), make([]byte, 0, size), make([]byte, size)
	for i := range random {
		random[i] = byte(rng.Uint32())
	}
	for len(text) < size {
		text = append(text, strings.Repeat("abcdefghijklmnopqrstuvwxyz "[rng.IntN(20):], 1+rng.IntN(2))[:rng.IntN(7)]...)
	}
	for len(mixed) < size {
		switch rng.IntN(4) {
		case 0:
			mixed = append(mixed, random[:rng.IntN(len(random)/2+1)]...)
		case 1:
			mixed = append(mixed, text[:rng.IntN(len(text)/2+1)]...)
		case 2:
			mixed = append(mixed, make([]byte, rng.IntN(100000))...)
		case 3:
			mixed = append(mixed, bytes.Repeat(random[:1+rng.IntN(min(9, len(random)))], rng.IntN(5000))...)
		}
	}
	for i := range skewed { // codes of all lengths
		skewed[i] = byte(min(rng.ExpFloat64()*6, 255))
	}
	return map[string][]byte{
		"empty": nil, "one byte": {'x'}, "zeroes": make([]byte, size), "random": random, "text": text[:size], "mixed": mixed[:size], "skewed": skewed,
	}
}

func compress(t testing.TB, content []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// What compressors write comes back as it was, however it is read, and not a byte
// behind it is taken.
func TestRead(t *testing.T) {
	const behind = "what follows"
	readers := map[string]func(io.Reader) io.Reader{
		"whole": func(r io.Reader) io.Reader { return r }, "bytes": iotest.OneByteReader, "halves": iotest.HalfReader, "with EOF": iotest.DataErrReader,
	}
	for name, content := range contents(300 << 10) {
		for _, level := range []int{flate.NoCompression, flate.BestSpeed, 6, flate.BestCompression, flate.HuffmanOnly} {
			compressed := compress(t, content, level)
			for how, wrap := range readers {
				t.Run(fmt.Sprintf("%s/%d/%s", name, level, how), func(t *testing.T) {
					source := bufio.NewReaderSize(wrap(strings.NewReader(string(compressed)+behind)), 4096)
					got, err := io.ReadAll(NewReader(source))
					if err != nil || !bytes.Equal(got, content) {
						t.Errorf("got %d bytes, error %v; want the %d that were compressed", len(got), err, len(content))
					}
					if rest, err := io.ReadAll(source); err != nil || string(rest) != behind {
						t.Errorf("behind the stream there is %q (%v), want %q", rest, err, behind)
					}
				})
			}
		}
	}
}

// A stream that is cut off anywhere is not complete.
func TestTruncated(t *testing.T) {
	for name, content := range contents(1000) {
		for _, level := range []int{flate.NoCompression, 6, flate.HuffmanOnly} {
			compressed := compress(t, content, level)
			for n := range compressed {
				if got, err := io.ReadAll(NewReader(bufio.NewReader(bytes.NewReader(compressed[:n])))); !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("%s, level %d, %d of %d bytes: got %d bytes, error %v", name, level, n, len(compressed), len(got), err)
				}
			}
		}
	}
}

// An error of the source is passed on, and stays.
func TestSourceFails(t *testing.T) {
	broken := errors.New("broken")
	compressed := compress(t, contents(1 << 16)["text"], 6)
	r := NewReader(bufio.NewReader(io.MultiReader(bytes.NewReader(compressed[:len(compressed)/2]), iotest.ErrReader(broken))))
	for range 2 {
		if _, err := io.Copy(io.Discard, r); !errors.Is(err, broken) {
			t.Errorf("got %v, want %v", err, broken)
		}
	}
}

// Decompression can go on from every pause, also in the middle of a byte.
func TestResume(t *testing.T) {
	for name, content := range contents(1 << 20) {
		for _, level := range []int{flate.NoCompression, 6, flate.HuffmanOnly} {
			compressed := compress(t, content, level)
			r := NewReader(bufio.NewReader(bytes.NewReader(compressed)))
			r.Pause = func(int64) bool { return true }
			var got []byte
			pauses := 0
			for buffer := make([]byte, 5000); ; {
				n, err := r.Read(buffer)
				got = append(got, buffer[:n]...)
				if errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
				if r.Paused() {
					pauses++
					checkResume(t, compressed, r.Checkpoint(), content[len(got):])
				}
			}
			if !bytes.Equal(got, content) {
				t.Errorf("%s, level %d: with pauses the content is another", name, level)
			}
			if pauses == 0 && len(content) > 1 {
				t.Errorf("%s, level %d: no pause", name, level)
			}
		}
	}
}

func checkResume(t *testing.T, compressed []byte, c Checkpoint, want []byte) {
	t.Helper()
	r, err := Resume(bufio.NewReader(bytes.NewReader(compressed[c.Offset:])), c)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("resumed at byte %d, bit %d: %d bytes, error %v; want the %d that follow", c.Offset, c.Bit, len(got), err, len(want))
	}
}

func TestResumeRefuses(t *testing.T) {
	for _, c := range []Checkpoint{{Bit: 8}, {Window: make([]byte, windowSize+1)}} {
		if _, err := Resume(bufio.NewReader(bytes.NewReader(nil)), c); err == nil {
			t.Errorf("a checkpoint of bit %d with a window of %d bytes is accepted", c.Bit, len(c.Window))
		}
	}
}

// bits writes a stream by hand.
type bitString struct {
	bytes []byte
	n     int
}

func (b *bitString) add(value, n int) *bitString {
	for i := range n {
		if b.n%8 == 0 {
			b.bytes = append(b.bytes, 0)
		}
		b.bytes[b.n/8] |= byte(value>>i&1) << (b.n % 8)
		b.n++
	}
	return b
}

// Streams that no compressor writes are refused, with what is wrong. Each is read
// with and without bytes behind it, for near the end of its input the reader is
// another.
func TestCorrupt(t *testing.T) {
	dynamic := func(nlit, ndist, ncode int) *bitString {
		return new(bitString).add(1, 1).add(2, 2).add(nlit-257, 5).add(ndist-1, 5).add(ncode-4, 4)
	}
	// A code of code lengths with two symbols, 18 (code 0) and 1 (code 1).
	twoLengths := func(nlit, ndist int) *bitString {
		b := dynamic(nlit, ndist, 18)
		for _, symbol := range codeOrder[:18] {
			n := 0
			if symbol == 18 || symbol == 1 {
				n = 1
			}
			b.add(n, 3)
		}
		return b // 1 is the smaller symbol: its code is 0, that of 18 is 1
	}
	zeroes := func(b *bitString, n int) *bitString { return b.add(1, 1).add(n-11, 7) }
	fixedLit := func(b *bitString, code, n int) *bitString { // codes go with their highest bit first
		for i := n - 1; i >= 0; i-- {
			b.add(code>>i, 1)
		}
		return b
	}
	for name, test := range map[string]struct {
		stream *bitString
		want   string
	}{
		"reserved kind":   {new(bitString).add(1, 1).add(3, 2), "reserved kind"},
		"stored check":    {new(bitString).add(1, 8).add(5, 16).add(5, 16), "check"},
		"287 literals":    {dynamic(287, 1, 4), "at most 286"},
		"31 distances":    {dynamic(257, 31, 4), "at most 286 and 30"},
		"lengths: over":   {dynamic(257, 1, 4).add(1, 3).add(1, 3).add(1, 3).add(0, 3), "code of code lengths"},
		"lengths: under":  {dynamic(257, 1, 4).add(2, 3).add(0, 3).add(0, 3).add(0, 3), "code of code lengths"},
		"lengths: none":   {dynamic(257, 1, 4).add(0, 12), "code of code lengths"},
		"repeats nothing": {dynamic(257, 1, 4).add(1, 3).add(1, 3).add(0, 6).add(0, 1), "repeats the one before"},
		"too many":        {zeroes(zeroes(zeroes(twoLengths(257, 1), 138), 110), 138), "more symbols than there are"},
		"no end of block": {zeroes(zeroes(twoLengths(257, 1), 138), 120), "end of the block has no code"},
		"literals: over":  {zeroes(zeroes(twoLengths(257, 1).add(0, 1).add(0, 1), 138), 116).add(0, 1).add(0, 1), "code of literals"},
		"distances: over": {zeroes(zeroes(twoLengths(257, 3), 138), 118).add(0, 1).add(0, 3), "code of distances"},
		"literal 286":     {fixedLit(new(bitString).add(1, 1).add(1, 2), 0xc6, 8), noSuchLit},
		"distance 30":     {fixedLit(fixedLit(new(bitString).add(1, 1).add(1, 2), 1, 7), 30, 5), noSuchDist},
		"before begin":    {fixedLit(fixedLit(new(bitString).add(1, 1).add(1, 2), 1, 7), 0, 5), tooFar},
		"code not in use": {zeroes(zeroes(twoLengths(257, 1), 138), 118).add(0, 1).add(0, 1).add(1, 1), noSuchLit},
	} {
		for _, behind := range []int{8, 64} {
			t.Run(fmt.Sprintf("%s/%d", strings.ReplaceAll(name, " ", "_"), behind), func(t *testing.T) {
				stream := append(bytes.Clone(test.stream.bytes), make([]byte, behind)...)
				_, err := io.ReadAll(NewReader(bufio.NewReader(bytes.NewReader(stream))))
				var corrupt *corruptError
				if !errors.As(err, &corrupt) || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("got %v, want %q", err, test.want)
				}
				if corrupt.Offset < 0 || corrupt.Offset > int64(len(stream)) {
					t.Errorf("it is at byte %d of %d", corrupt.Offset, len(stream))
				}
			})
		}
	}
}

// A code with one distance of one bit, and one with none, are zlib's exceptions.
func TestIncompleteDistances(t *testing.T) {
	for name, content := range map[string]string{"none": "abcdefg", "one": "abcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabc"} {
		t.Run(name, func(t *testing.T) {
			compressed := compress(t, []byte(content), 9)
			if got, err := io.ReadAll(NewReader(bufio.NewReader(bytes.NewReader(compressed)))); err != nil || string(got) != content {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

// FuzzAgainstGo wants what compress/flate of Go's library says of the same stream:
// content and end, or an error. (Go's takes a few codes that zlib refuses, so that
// an error of ours alone must be one of those.)
func FuzzAgainstGo(f *testing.F) {
	for _, content := range contents(2000) {
		for _, level := range []int{0, 1, 6, 9, flate.HuffmanOnly} {
			f.Add(compress(f, content, level), uint16(7))
		}
	}
	f.Fuzz(func(t *testing.T, stream []byte, size uint16) {
		const most = 1 << 22
		source := bytes.NewReader(stream)
		want, wantErr := io.ReadAll(io.LimitReader(flate.NewReader(source), most))
		wantRest := source.Len()
		ours := bufio.NewReaderSize(iotest.HalfReader(bytes.NewReader(stream)), 16+int(size)%512)
		got, err := io.ReadAll(io.LimitReader(NewReader(ours), most))
		if (err == nil) != (wantErr == nil) && !(err != nil && strings.Contains(err.Error(), "no such")) {
			t.Fatalf("got %v, Go's has %v", err, wantErr)
		}
		if err != nil {
			if !bytes.HasPrefix(want, got) && !bytes.HasPrefix(got, want) {
				t.Fatalf("before the error %v the content is another than Go's before %v", err, wantErr)
			}
			return
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("got %d bytes, Go's has %d, and they differ", len(got), len(want))
		}
		if rest, _ := io.ReadAll(ours); len(got) < most && len(rest) != wantRest {
			t.Errorf("%d bytes are left, Go's leaves %d", len(rest), wantRest)
		}
	})
}

// BenchmarkText compares with the libraries, on what they are slowest at.
func BenchmarkText(b *testing.B) {
	content := contents(8 << 20)["text"]
	compressed := compress(b, content, 6)
	for _, side := range []struct {
		name string
		open func(*bufio.Reader) io.Reader
	}{
		{"this", func(r *bufio.Reader) io.Reader { return NewReader(r) }},
		{"klauspost", func(r *bufio.Reader) io.Reader { return kflate.NewReader(r) }},
		{"go", func(r *bufio.Reader) io.Reader { return flate.NewReader(r) }},
	} {
		b.Run(side.name, func(b *testing.B) {
			b.SetBytes(int64(len(content)))
			for b.Loop() {
				if _, err := io.Copy(io.Discard, side.open(bufio.NewReaderSize(bytes.NewReader(compressed), 64<<10))); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
