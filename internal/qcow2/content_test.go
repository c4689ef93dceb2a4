package qcow2

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"testing"
)

// What a Content reads is what qemu-img reads: of plain and compressed clusters, of extended
// L2 entries, and through a backing file.
func TestContentIsQEMUs(t *testing.T) {
	dir := t.TempDir()
	const size = 3<<20 + 512
	raw := make([]byte, size)
	random := rand.New(rand.NewSource(1))
	for at := 0; at < size; at += 70000 { // runs of random bytes, text and zeros
		part := raw[at:min(at+70000, size)]
		switch at / 70000 % 3 {
		case 0:
			random.Read(part)
		case 1:
			copy(part, bytes.Repeat([]byte("gitlab "), 10000))
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "base.raw"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"plain":               {"-o", "cluster_size=64k"},
		"version 2":           {"-o", "compat=0.10"},
		"small clusters":      {"-o", "cluster_size=512"},
		"extended":            {"-o", "extended_l2=on,cluster_size=128k"},
		"zlib":                {"-c"},
		"zlib, 2M clusters":   {"-c", "-o", "cluster_size=2M"},
		"zlib, 4k clusters":   {"-c", "-o", "cluster_size=4k"},
		"zstd":                {"-c", "-o", "compression_type=zstd"},
		"zstd, 2M clusters":   {"-c", "-o", "compression_type=zstd,cluster_size=2M"},
		"extended and packed": {"-c", "-o", "extended_l2=on"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(dir, "packed.qcow2")
			qemuImg(t, dir, append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, args...), "base.raw", file)...)
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			c, err := NewContent(f, nil)
			if err != nil {
				t.Fatal(err)
			}
			same(t, c, raw)
		})
	}
	t.Run("backing file", func(t *testing.T) {
		qemuImg(t, dir, "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "top.qcow2", "4M")
		want := append(bytes.Clone(raw), make([]byte, 4<<20-size)...)
		top, err := os.Open(filepath.Join(dir, "top.qcow2"))
		if err != nil {
			t.Fatal(err)
		}
		defer top.Close()
		c, err := NewContent(top, bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		same(t, c, want)
	})
}

// same compares a disk at offsets that meet and cross clusters.
func same(t *testing.T, c *Content, want []byte) {
	t.Helper()
	if c.Size() != int64(len(want)) {
		t.Fatalf("size %d, want %d", c.Size(), len(want))
	}
	random := rand.New(rand.NewSource(2))
	for range 20 {
		at := random.Intn(len(want))
		got := make([]byte, 1+random.Intn(100000))
		n, err := c.ReadAt(got, int64(at))
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		end := min(at+len(got), len(want))
		if n != end-at || (err == io.EOF) != (at+len(got) > len(want)) || !bytes.Equal(got[:n], want[at:end]) {
			t.Fatalf("%d bytes at %d: got %d, %v, or other bytes", len(got), at, n, err)
		}
	}
}

// FuzzContent reads the beginning and the end of disks with any tables: no panic, and never
// more memory than for a cluster.
func FuzzContent(f *testing.F) {
	f.Add([]byte(sample()))
	// Its tables: a plain, a compressed and a zero cluster.
	whole := append(sample(), make(memory, 4<<16)...)
	be := binary.BigEndian
	be.PutUint64(whole[3<<16:], 4<<16)
	for i, entry := range []uint64{1<<63 | 1<<16, l2Compressed | 1<<54 | 2<<16, l2Zero} {
		be.PutUint64(whole[4<<16+8*i:], entry)
	}
	f.Add([]byte(whole))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := NewContent(memory(b), nil)
		if err != nil {
			return
		}
		buf := make([]byte, 1024)
		for _, at := range []int64{0, c.Size() / 2, c.Size() - 512} {
			if n, err := c.ReadAt(buf, max(at, 0)); err == nil && n != len(buf) {
				t.Fatalf("%d bytes and no error", n)
			}
		}
	})
}
