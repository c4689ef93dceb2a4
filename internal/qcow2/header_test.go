package qcow2

import (
	"bytes"
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
	return bytes.NewReader(m).ReadAt(p, off)
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

// extend puts an extension behind a header of 104 bytes.
func (m memory) extend(kind uint32, size uint32, body string) memory {
	binary.BigEndian.PutUint32(m[104:], kind)
	binary.BigEndian.PutUint32(m[108:], size)
	copy(m[112:], body)
	return m
}

// set changes a field.
func (m memory) set(offset, value any) memory {
	at := offset.(int)
	switch v := value.(type) {
	case uint8:
		m[at] = v
	case uint32:
		binary.BigEndian.PutUint32(m[at:], v)
	case uint64:
		binary.BigEndian.PutUint64(m[at:], v)
	case string:
		copy(m[at:], v)
	}
	return m
}

// Where fields of a header are.
const (
	atVersion          = 4
	atBackingOffset    = 8
	atBackingSize      = 16
	atClusterBits      = 20
	atSize             = 24
	atEncryption       = 32
	atL1Size           = 36
	atL1Offset         = 40
	atRefcountOffset   = 48
	atRefcountClusters = 56
	atSnapshots        = 60
	atSnapshotsOffset  = 64
	atIncompatible     = 72
	atAutoclear        = autoclearOffset
	atRefcountOrder    = 96
	atHeaderLength     = 100
	atCompressionType  = 104
)

// bitmaps is the body of a bitmaps extension.
func bitmaps(count, reserved uint32, size, offset uint64) string {
	be := binary.BigEndian
	return string(be.AppendUint64(be.AppendUint64(be.AppendUint32(be.AppendUint32(nil, count), reserved), size), offset))
}

// refused changes one thing at a time in a good header. QEMU refuses the result,
// too, unless stricter.
var refused = map[string]struct {
	change   func(m memory) memory
	want     string
	stricter bool
}{
	"short":           {func(m memory) memory { return m[:71] }, "ends after 71", false},
	"short version 3": {func(m memory) memory { return m[:100] }, "ends after 100", false},
	"version 1":       {func(m memory) memory { return m.set(atVersion, uint32(1)) }, "version 1", false},
	"version 4":       {func(m memory) memory { return m.set(atVersion, uint32(4)) }, "version 4", false},
	"tiny clusters":   {func(m memory) memory { return m.set(atClusterBits, uint32(8)) }, "cluster bits 8", false},
	"large clusters":  {func(m memory) memory { return m.set(atClusterBits, uint32(22)) }, "cluster bits 22", false},
	"huge clusters":   {func(m memory) memory { return m.set(atClusterBits, uint32(63)) }, "cluster bits 63", false},
	"negative size":   {func(m memory) memory { return m.set(atSize, uint64(1<<63)) }, "virtual size", false},
	"size overflows":  {func(m memory) memory { return m.set(atSize, uint64(1<<63-1)) }, "virtual size", false},
	"L1 too small":    {func(m memory) memory { return m.set(atSize, uint64(1<<40)) }, "too small", false},
	"L1 too large":    {func(m memory) memory { return m.set(atL1Size, uint32(1<<31)) }, "too large", false},
	"L1 unaligned":    {func(m memory) memory { return m.set(atL1Offset, uint64(3<<16+8)) }, "L1 table at offset", false},
	"empty L1 unaligned": {func(m memory) memory {
		return m.set(atL1Offset, uint64(8)).set(atL1Size, uint32(0)).set(atSize, uint64(0))
	}, "L1 table at offset", false},
	"L1 offset overflows":         {func(m memory) memory { return m.set(atL1Offset, uint64(1<<64-1<<16)) }, "L1 table at offset", false},
	"L1 behind every file":        {func(m memory) memory { return m.set(atL1Offset, uint64(1<<63-1<<16)) }, "L1 table at offset", false},
	"no refcount table":           {func(m memory) memory { return m.set(atRefcountClusters, uint32(0)) }, "no refcount table", false},
	"refcount table too large":    {func(m memory) memory { return m.set(atRefcountClusters, uint32(1<<31)) }, "refcount table", false},
	"refcount table unaligned":    {func(m memory) memory { return m.set(atRefcountOffset, uint64(1<<16+512)) }, "refcount table at offset", false},
	"refcount table behind files": {func(m memory) memory { return m.set(atRefcountOffset, uint64(1<<63-1<<17)) }, "refcount table at offset", false},
	"refcount order":              {func(m memory) memory { return m.set(atRefcountOrder, uint32(7)) }, "refcount order", false},
	"snapshots":                   {func(m memory) memory { return m.set(atSnapshots, uint32(65537)) }, "snapshots", false},
	"snapshots unaligned":         {func(m memory) memory { return m.set(atSnapshots, uint32(1)).set(atSnapshotsOffset, uint64(1<<16+8)) }, "snapshot table at offset", false},
	"no snapshots, unaligned":     {func(m memory) memory { return m.set(atSnapshotsOffset, uint64(8)) }, "snapshot table at offset", false},
	"snapshots behind every file": {func(m memory) memory {
		return m.set(atSnapshots, uint32(1)).set(atSnapshotsOffset, uint64(1<<63-1<<16))
	}, "snapshot table at offset", false},
	"snapshot with much extra": {func(m memory) memory {
		return m.set(atSnapshots, uint32(1)).set(atSnapshotsOffset, uint64(0)).set(36, uint32(1025)).set(atSize, uint64(0))
	}, "extra data", false},
	"snapshot table too large": {func(m memory) memory {
		m = append(m, make([]byte, 68<<20)...)
		for at := 1 << 16; at < len(m)-snapshotEntry; at += snapshotEntry + 2*65528 {
			m.set(at+12, uint32(65528<<16|65528))
		}
		return m.set(atSnapshots, uint32(1000)).set(atSnapshotsOffset, uint64(1<<16)).set(atRefcountOffset, uint64(0))
	}, "snapshot table of 1000 entries", false},
	"encryption":                 {func(m memory) memory { return m.set(atEncryption, uint32(3)) }, "encryption", false},
	"unknown feature":            {func(m memory) memory { return m.set(atIncompatible, uint64(1<<40)) }, "unknown incompatible", false},
	"next feature":               {func(m memory) memory { return m.set(atIncompatible, uint64(1<<5)) }, "unknown incompatible", false},
	"compression without a type": {func(m memory) memory { return m.set(atIncompatible, uint64(incompatibleCompression)) }, "compression type 0", false},
	"zlib with the bit":          {func(m memory) memory { return m.set(atHeaderLength, uint32(112)).set(atIncompatible, uint64(8)) }, "compression type 0", false},
	"zstd without the bit":       {func(m memory) memory { return m.set(atHeaderLength, uint32(112)).set(atCompressionType, uint8(1)) }, "compression type 1", false},
	"unknown compression": {func(m memory) memory {
		return m.set(atHeaderLength, uint32(112)).set(atCompressionType, uint8(2)).set(atIncompatible, uint64(8))
	}, "unknown compression type 2", false},
	"unknown compression, no bit":      {func(m memory) memory { return m.set(atHeaderLength, uint32(112)).set(atCompressionType, uint8(255)) }, "unknown compression type 255", false},
	"extended L2 with small clusters":  {func(m memory) memory { return m.set(atClusterBits, uint32(13)).set(atIncompatible, uint64(16)) }, "extended L2", false},
	"extended L2, L1 too small":        {func(m memory) memory { return m.set(atIncompatible, uint64(16)).set(atSize, uint64(1<<28+1)) }, "too small", false},
	"short header length":              {func(m memory) memory { return m.set(atHeaderLength, uint32(96)) }, "header length", false},
	"odd header length":                {func(m memory) memory { return m.set(atHeaderLength, uint32(108)) }, "header length", true},
	"long header length":               {func(m memory) memory { return m.set(atHeaderLength, uint32(1<<31)) }, "header length", false},
	"header length beyond the cluster": {func(m memory) memory { return m.set(atHeaderLength, uint32(1<<16+8)) }, "header length", false},
	"name in header":                   {func(m memory) memory { return m.set(atBackingOffset, uint64(24)).set(atBackingSize, uint32(4)) }, "inside of the header", true},
	"name far away":                    {func(m memory) memory { return m.set(atBackingOffset, uint64(1<<40)).set(atBackingSize, uint32(4)) }, "outside of the first cluster", false},
	"name too long":                    {func(m memory) memory { return m.set(atBackingOffset, uint64(200)).set(atBackingSize, uint32(1024)) }, "too long", false},
	"name over the cluster":            {func(m memory) memory { return m.set(atBackingOffset, uint64(65530)).set(atBackingSize, uint32(10)) }, "too long", false},
	"name empty":                       {func(m memory) memory { return m.set(atBackingOffset, uint64(200)) }, "empty", true},
	"name with NUL": {func(m memory) memory {
		return m.set(atBackingOffset, uint64(200)).set(atBackingSize, uint32(4)).set(200, "a\x00bc")
	}, "NUL", true},
	"no room for an extension": {func(m memory) memory {
		return m.set(atBackingOffset, uint64(108)).set(atBackingSize, uint32(4)).set(108, "base")
	}, "no room", false},
	"extension too long": {func(m memory) memory { return m.extend(1, 1<<31, "") }, "does not fit", false},
	"end mark too long":  {func(m memory) memory { return m.extend(extensionEnd, 1<<16, "") }, "does not fit", false},
	"extension into the name": {func(m memory) memory {
		return m.extend(1, 9, "").set(atBackingOffset, uint64(120)).set(atBackingSize, uint32(4)).set(120, "base")
	}, "does not fit", false},
	"extension twice": {func(m memory) memory {
		m.extend(extensionBackingFormat, 3, "raw")
		copy(m[120:], m[104:120])
		return m
	}, "appears twice", true},
	"long backing format":     {func(m memory) memory { return m.extend(extensionBackingFormat, 16, "sixteen letters!") }, "format of the backing file", false},
	"encryption header alone": {func(m memory) memory { return m.extend(extensionCrypto, 16, "") }, "encryption header", false},
	"short encryption header": {func(m memory) memory { return m.extend(extensionCrypto, 8, "").set(atEncryption, uint32(2)) }, "encryption header", false},
	"short bitmaps":           {func(m memory) memory { return m.extend(extensionBitmaps, 16, "") }, "bitmaps extension of 16 bytes", false},
	"no bitmaps": {func(m memory) memory {
		return m.extend(extensionBitmaps, 24, bitmaps(0, 0, 32, 1<<18)).set(atAutoclear, uint64(1))
	}, "0 bitmaps", false},
	"many bitmaps": {func(m memory) memory {
		return m.extend(extensionBitmaps, 24, bitmaps(65536, 0, 32, 1<<18)).set(atAutoclear, uint64(1))
	}, "65536 bitmaps", false},
	"reserved field of bitmaps": {func(m memory) memory {
		return m.extend(extensionBitmaps, 24, bitmaps(1, 1, 32, 1<<18)).set(atAutoclear, uint64(1))
	}, "1 bitmaps", false},
	"large bitmap directory": {func(m memory) memory {
		return m.extend(extensionBitmaps, 24, bitmaps(1, 0, 1<<30, 1<<18)).set(atAutoclear, uint64(1))
	}, "1 bitmaps", false},
	"unaligned bitmaps": {func(m memory) memory {
		return m.extend(extensionBitmaps, 24, bitmaps(1, 0, 32, 1<<18+8)).set(atAutoclear, uint64(1))
	}, "1 bitmaps", false},
	"file ends in extensions": {func(m memory) memory { return m.extend(1, 8, "")[:124] }, "ends among", true},
}

func TestReadHeaderRefuses(t *testing.T) {
	names, images := []string{"the unchanged header"}, []memory{sample()}
	for name, test := range refused {
		t.Run(name, func(t *testing.T) {
			m := test.change(sample())
			_, err := ReadHeader(m)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got error %v, want one with %q", err, test.want)
			}
			if errors.Is(err, ErrNotQCOW2) {
				t.Errorf("%v must not pass for another format", err)
			}
			names, images = append(names, name), append(images, m)
		})
	}
	failed := openAll(t, images)
	for i, name := range names {
		if _, isRefused := failed[i]; isRefused != (i > 0 && !refused[name].stricter) {
			t.Errorf("%s: QEMU: %q", name, failed[i])
		}
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

// What QEMU opens is not refused where somebody's images could be so.
func TestReadHeaderAccepts(t *testing.T) {
	var names []string
	var images []memory
	for name, change := range map[string]func(m memory) memory{
		"long header": func(m memory) memory { return m.set(atHeaderLength, uint32(128)) },
		"zstd": func(m memory) memory {
			return m.set(atHeaderLength, uint32(112)).set(atCompressionType, uint8(1)).set(atIncompatible, uint64(8))
		},
		"extended L2":                        func(m memory) memory { return m.set(atIncompatible, uint64(16)) },
		"bitmaps that are out of date":       func(m memory) memory { return m.extend(extensionBitmaps, 24, bitmaps(0, 1, 1, 1)) },
		"unknown extension":                  func(m memory) memory { return m.extend(1, 8, "whatever") },
		"unknown autoclear bits":             func(m memory) memory { return m.set(atAutoclear, uint64(1<<40)) },
		"dirty":                              func(m memory) memory { return m.set(atIncompatible, uint64(incompatibleDirty)) },
		"compression byte of a short header": func(m memory) memory { return m.extend(0x05000000, 0, "") },
		"no disk at all":                     func(m memory) memory { return m.set(atSize, uint64(0)).set(atL1Size, uint32(0)) },
		"version 2":                          func(m memory) memory { return m.set(atVersion, uint32(2)).set(72, strings.Repeat("\x00", 40)) },
		"snapshot behind the end":            func(m memory) memory { return m.set(atSnapshots, uint32(2)).set(atSnapshotsOffset, uint64(1<<30)) },
	} {
		t.Run(name, func(t *testing.T) {
			m := change(sample())
			if _, err := ReadHeader(m); err != nil {
				t.Error(err)
			}
			names, images = append(names, name), append(images, m)
		})
	}
	for i, why := range openAll(t, images) {
		t.Errorf("%s: QEMU does not open it: %s", names[i], why)
	}
}

func TestExternalData(t *testing.T) {
	be := binary.BigEndian
	for name, change := range map[string]func(m memory){
		"feature bit": func(m memory) { be.PutUint64(m[72:], incompatibleExternalData) },
		"raw bit":     func(m memory) { be.PutUint64(m[88:], autoclearRawExternalData) },
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
