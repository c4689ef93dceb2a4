package qcow2

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// memory is a file that lives in memory.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error) {
	return strings.NewReader(string(m)).ReadAt(p, off)
}

func (m memory) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }

// sample is a valid version 3 header of a 1 MiB disk with 64 KiB clusters.
func sample() memory {
	m := make(memory, 65536)
	copy(m, Magic)
	be := binary.BigEndian
	be.PutUint32(m[4:], 3)
	be.PutUint32(m[20:], 16)
	be.PutUint64(m[24:], 1<<20)
	be.PutUint32(m[36:], 1)
	be.PutUint64(m[40:], 3<<16)
	be.PutUint64(m[48:], 1<<16)
	be.PutUint32(m[56:], 1)
	be.PutUint32(m[96:], 4)
	be.PutUint32(m[100:], 104)
	return m
}

// TestReadHeaderRefuses changes one thing at a time in a good header.
func TestReadHeaderRefuses(t *testing.T) {
	be := binary.BigEndian
	extend := func(m memory, kind uint32, size uint32, body string) {
		be.PutUint32(m[104:], kind)
		be.PutUint32(m[108:], size)
		copy(m[112:], body)
	}
	tests := map[string]struct {
		change func(m memory) memory
		want   string
	}{
		"short":                    {func(m memory) memory { return m[:71] }, "ends after 71"},
		"short version 3":          {func(m memory) memory { return m[:100] }, "ends after 100"},
		"version 1":                {func(m memory) memory { be.PutUint32(m[4:], 1); return m }, "version 1"},
		"version 4":                {func(m memory) memory { be.PutUint32(m[4:], 4); return m }, "version 4"},
		"tiny clusters":            {func(m memory) memory { be.PutUint32(m[20:], 8); return m }, "cluster bits 8"},
		"huge clusters":            {func(m memory) memory { be.PutUint32(m[20:], 63); return m }, "cluster bits 63"},
		"negative size":            {func(m memory) memory { be.PutUint64(m[24:], 1<<63); return m }, "virtual size"},
		"size overflows":           {func(m memory) memory { be.PutUint64(m[24:], 1<<63-1); return m }, "virtual size"},
		"L1 too small":             {func(m memory) memory { be.PutUint64(m[24:], 1<<40); return m }, "too small"},
		"L1 too large":             {func(m memory) memory { be.PutUint32(m[36:], 1<<31); return m }, "too large"},
		"L1 unaligned":             {func(m memory) memory { be.PutUint64(m[40:], 3<<16+8); return m }, "L1 table at offset"},
		"L1 offset overflows":      {func(m memory) memory { be.PutUint64(m[40:], 1<<64-1<<16); return m }, "L1 table at offset"},
		"refcount table too large": {func(m memory) memory { be.PutUint32(m[56:], 1<<31); return m }, "refcount table"},
		"refcount order":           {func(m memory) memory { be.PutUint32(m[96:], 7); return m }, "refcount order"},
		"snapshots":                {func(m memory) memory { be.PutUint32(m[60:], 1<<20); return m }, "snapshots"},
		"encryption":               {func(m memory) memory { be.PutUint32(m[32:], 3); return m }, "encryption"},
		"unknown feature":          {func(m memory) memory { be.PutUint64(m[72:], 1<<40); return m }, "unknown incompatible"},
		"short header length":      {func(m memory) memory { be.PutUint32(m[100:], 96); return m }, "header length"},
		"long header length":       {func(m memory) memory { be.PutUint32(m[100:], 1<<31); return m }, "header length"},
		"name in header":           {func(m memory) memory { be.PutUint64(m[8:], 24); be.PutUint32(m[16:], 4); return m }, "inside of the header"},
		"name far away":            {func(m memory) memory { be.PutUint64(m[8:], 1<<40); be.PutUint32(m[16:], 4); return m }, "outside of the first cluster"},
		"name too long":            {func(m memory) memory { be.PutUint64(m[8:], 200); be.PutUint32(m[16:], 1024); return m }, "too long"},
		"name over the cluster":    {func(m memory) memory { be.PutUint64(m[8:], 65530); be.PutUint32(m[16:], 10); return m }, "too long"},
		"name empty":               {func(m memory) memory { be.PutUint64(m[8:], 200); return m }, "empty"},
		"name with NUL": {func(m memory) memory {
			be.PutUint64(m[8:], 200)
			be.PutUint32(m[16:], 4)
			copy(m[200:], "a\x00bc")
			return m
		}, "NUL"},
		"extension too long": {func(m memory) memory { extend(m, 1, 1<<31, ""); return m }, "does not fit"},
		"extension twice": {func(m memory) memory {
			extend(m, extensionBackingFormat, 3, "raw")
			copy(m[120:], m[104:120])
			return m
		}, "appears twice"},
		"file ends in extensions": {func(m memory) memory { extend(m, 1, 8, ""); return m[:124] }, "ends among"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := ReadHeader(test.change(sample()))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got error %v, want one with %q", err, test.want)
			}
			if errors.Is(err, ErrNotQCOW2) {
				t.Errorf("%v must not pass for another format", err)
			}
		})
	}
	if _, err := ReadHeader(sample()); err != nil {
		t.Fatalf("the unchanged header: %v", err)
	}
	for _, other := range []string{"", "QFI", "KDMV", strings.Repeat("\x00", 512)} {
		if _, err := ReadHeader(memory(other)); !errors.Is(err, ErrNotQCOW2) {
			t.Errorf("%q: got %v, want ErrNotQCOW2", other, err)
		}
	}
}

func TestExternalData(t *testing.T) {
	be := binary.BigEndian
	for name, change := range map[string]func(m memory){
		"feature bit": func(m memory) { be.PutUint64(m[72:], IncompatibleExternalData) },
		"raw bit":     func(m memory) { be.PutUint64(m[88:], AutoclearRawExternalData) },
		"name alone": func(m memory) {
			be.PutUint32(m[104:], extensionDataFile)
			be.PutUint32(m[108:], 11)
			copy(m[112:], "/etc/shadow")
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := sample()
			change(m)
			h, err := ReadHeader(m)
			if err != nil || !h.ExternalData() {
				t.Fatalf("got %+v, %v; want external data", h, err)
			}
		})
	}
}

// TestSetBackingFile lets qemu-img judge files that were rewritten here.
func TestSetBackingFile(t *testing.T) {
	for _, compat := range []string{"0.10", "1.1"} {
		t.Run(compat, func(t *testing.T) {
			dir := t.TempDir()
			qemuImg(t, dir, "create", "-q", "-f", "qcow2", "base.qcow2", "1M")
			qemuImg(t, dir, "create", "-q", "-f", "qcow2", "./a:longer-name.qcow2", "1M")
			qemuImg(t, dir, "create", "-q", "-f", "qcow2", "-o", "compat="+compat, "-F", "qcow2", "-b", filepath.Join(dir, "base.qcow2"), "top.qcow2")
			top, err := os.OpenFile(filepath.Join(dir, "top.qcow2"), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer top.Close()
			for _, name := range []string{"base.qcow2", "./a:longer-name.qcow2", ""} {
				if err := SetBackingFile(top, name, "qcow2"); err != nil {
					t.Fatal(err)
				}
				h, err := ReadHeader(top)
				if err != nil || h.BackingFile != name || (name != "") != (h.BackingFormat == "qcow2") {
					t.Fatalf("after writing %q: %+v, %v", name, h, err)
				}
				info := qemuImg(t, dir, "info", "--backing-chain", "top.qcow2")
				if got := strings.Contains(info, "backing file: "+name); got != (name != "") {
					t.Errorf("qemu-img info after writing %q:\n%s", name, info)
				}
				qemuImg(t, dir, "check", "-q", "top.qcow2")
			}
			if err := SetBackingFile(top, strings.Repeat("n", 1024), "qcow2"); err == nil {
				t.Error("a name of 1024 bytes was accepted")
			}
		})
	}
}

func qemuImg(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("qemu-img", args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// FuzzReadHeader also holds the promise of [SetBackingFile]: what it writes, it
// can read again.
func FuzzReadHeader(f *testing.F) {
	f.Add([]byte(sample()[:512]))
	f.Add([]byte(sample()[:72]))
	f.Fuzz(func(t *testing.T, b []byte) {
		m := append(make(memory, 0, 65536), b[:min(len(b), 65536)]...)
		before, err := ReadHeader(m)
		if err != nil {
			return
		}
		m = m[:cap(m)]
		if SetBackingFile(m, "base.qcow2", "raw") != nil {
			return
		}
		after, err := ReadHeader(m)
		if err != nil || after.BackingFile != "base.qcow2" || after.BackingFormat != "raw" || after.VirtualSize != before.VirtualSize {
			t.Fatalf("rewritten header: %+v, %v", after, err)
		}
	})
}
