package qcow2

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var mutants = flag.Int("mutants", 400, "how many headers to compare with QEMU")

// writeSparse writes a file with holes for what is zero.
func writeSparse(path string, m memory) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	zeroes := make([]byte, 64<<10)
	for at := 0; at < len(m); at += len(zeroes) {
		part := m[at:min(at+len(zeroes), len(m))]
		if bytes.Equal(part, zeroes[:len(part)]) {
			continue
		}
		if _, err := f.WriteAt(part, int64(at)); err != nil {
			return err
		}
	}
	return f.Truncate(int64(len(m)))
}

// openAll returns the errors of QEMU when it opens images, without their backing files, by
// the number of the image. One process of qemu-io opens all of them; qemu-img, which reads
// what is in an image without opening it for a guest, has a look at every twentieth.
func openAll(t *testing.T, images []memory) map[int]string {
	t.Helper()
	dir := t.TempDir()
	failed := map[int]string{}
	var commands strings.Builder
	for i, m := range images {
		path := filepath.Join(dir, fmt.Sprintf("image%d", i))
		if err := writeSparse(path, m); err != nil {
			t.Fatal(err)
		}
		if i%20 == 0 {
			if out, err := exec.Command("qemu-img", "info", "-f", "qcow2", path).CombinedOutput(); err != nil || strings.Contains(string(out), "Could not open") {
				failed[i] = fmt.Sprintf("qemu-img: %v: %s", err, out)
			}
		}
		// Without backing=, it would look into what the image keeps elsewhere.
		fmt.Fprintf(&commands, "open -r -o driver=qcow2,backing=,file.driver=file,file.filename=%s\nlength\nclose\n", path)
	}
	cmd := exec.Command("qemu-io")
	cmd.Stdin = strings.NewReader(commands.String())
	out, err := cmd.CombinedOutput()
	// How it ends is decided by the last command.
	if _, ended := err.(*exec.ExitError); err != nil && !ended {
		t.Fatal(err)
	}
	// For each image there is an error of open, or what length says.
	i := 0
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "can't open") {
			failed[i] = line
			i++
		} else if isLength.MatchString(line) {
			i++
		}
	}
	if i != len(images) {
		t.Fatalf("qemu-io says something of %d images, want %d:\n%s", i, len(images), out)
	}
	return failed
}

// isLength matches what the command length of qemu-io prints.
var isLength = regexp.MustCompile(`(?m)[0-9.]+ ([KMGTPE]iB|bytes)$`)

// images are good ones of many kinds, made by QEMU.
func images(t *testing.T) map[string]memory {
	t.Helper()
	dir := t.TempDir()
	found := map[string]memory{}
	for name, commands := range map[string][]string{
		"plain":      {"create -q -f qcow2 image 1M"},
		"version 2":  {"create -q -f qcow2 -o compat=0.10 image 1M"},
		"small":      {"create -q -f qcow2 -o cluster_size=512 image 1M"},
		"zstd":       {"create -q -f qcow2 -o compression_type=zstd,cluster_size=4k image 1M"},
		"subcluster": {"create -q -f qcow2 -o extended_l2=on,cluster_size=16k image 1M"},
		"snapshots":  {"create -q -f qcow2 -o cluster_size=4k image 1M", "snapshot -q -c one image", "snapshot -q -c two image"},
		"bitmap":     {"create -q -f qcow2 -o cluster_size=4k image 1M", "bitmap --add image changes"},
		"backing":    {"create -q -f raw base 1M", "create -q -f qcow2 -o cluster_size=4k -F raw -b base image"},
	} {
		for _, command := range commands {
			qemuImg(t, dir, strings.Fields(command)...)
		}
		content, err := os.ReadFile(filepath.Join(dir, "image"))
		if err != nil {
			t.Fatal(err)
		}
		found[name] = content
	}
	return found
}

// mutate changes a field or two of a header, or of what follows, to something that
// is interesting.
func mutate(r *rand.Rand, m memory) (what string) {
	be := binary.BigEndian
	fields := []struct {
		at, size int
		name     string
	}{
		{4, 4, "version"}, {8, 8, "backing offset"}, {16, 4, "backing size"}, {20, 4, "cluster bits"}, {24, 8, "size"},
		{32, 4, "encryption"}, {36, 4, "L1 size"}, {40, 8, "L1 offset"}, {48, 8, "refcount offset"}, {56, 4, "refcount clusters"},
		{60, 4, "snapshots"}, {64, 8, "snapshots offset"}, {72, 8, "incompatible"}, {80, 8, "compatible"}, {88, 8, "autoclear"},
		{96, 4, "refcount order"}, {100, 4, "header length"}, {104, 1, "compression type"},
		{104, 4, "first extension"}, {108, 4, "its size"}, {112, 4, "second extension"}, {116, 4, "its size"},
	}
	// The table of snapshots, where there is one.
	if at := int(be.Uint64(m[64:])); be.Uint32(m[60:]) > 0 && at > 0 && at+snapshotEntry < len(m) {
		for range 3 {
			fields = append(fields, struct {
				at, size int
				name     string
			}{at + 4*r.IntN(20), 4, "snapshot"})
		}
	}
	for range 1 + r.IntN(2) {
		f := fields[r.IntN(len(fields))]
		if r.IntN(6) == 0 {
			f.at, f.size, f.name = r.IntN(min(len(m), 600)), 1, "byte"
		}
		old := append(make([]byte, 8-f.size), m[f.at:f.at+f.size]...)
		value := be.Uint64(old)
		switch r.IntN(5) {
		case 0:
			value = uint64(r.IntN(34))
		case 1:
			value = 1 << r.IntN(8*f.size)
		case 2:
			value ^= 1 << r.IntN(8*f.size)
		case 3:
			value += uint64(r.IntN(33)) - 16
		case 4:
			value = []uint64{0, 512, 4096, 65536, 1 << 20, 1<<63 - 1, 1 << 63, 1<<63 - 1<<16, ^uint64(0), 72, 104, 112, 120,
				uint64(extensionBitmaps), uint64(extensionCrypto), uint64(extensionBackingFormat), 65535, 65536, 65537, 1023, 1024, 1025, uint64(len(m))}[r.IntN(23)]
		}
		copy(m[f.at:], be.AppendUint64(nil, value)[8-f.size:])
		what += fmt.Sprintf("%s at %d: %#x, was %#x; ", f.name, f.at, value, be.Uint64(old))
	}
	return what
}

// unusable is what nobody uses of what [ReadHeader] accepts: package oci refuses
// it by these fields.
func unusable(h *Header) bool {
	return h.Encryption != EncryptionNone || h.ExternalData() || h.Incompatible&IncompatibleCorrupt != 0
}

// What is accepted here, QEMU opens: headers that are changed at random, from a
// seed that is always the same.
func TestQEMUAgrees(t *testing.T) {
	good := images(t)
	var names, tried []string
	var accepted, refused []memory
	try := func(name string, m memory) {
		tried, accepted = append(tried, name), append(accepted, m)
	}
	for name, m := range good {
		names = append(names, name)
		if h, err := ReadHeader(m); err != nil || unusable(h) {
			t.Errorf("%s: %+v, %v", name, h, err)
		}
		try(name, m)
	}
	slices.Sort(names)
	r := rand.New(rand.NewPCG(7, 2))
	for range *mutants {
		name := names[r.IntN(len(names))]
		m := slices.Clone(good[name])
		what := name + " with " + mutate(r, m)
		h, err := ReadHeader(m)
		if err != nil || unusable(h) {
			refused = append(refused, m)
			continue
		}
		if h.Bitmaps() {
			if err := DropBitmaps(m); err != nil {
				t.Errorf("%s: drop the bitmaps: %v", what, err)
			}
		}
		try(what, m)
	}
	for i, why := range openAll(t, accepted) {
		t.Errorf("%s is accepted, and QEMU does not open it: %s", tried[i], why)
	}
	n := len(accepted) - len(good)
	t.Logf("%d of %d headers were accepted", n, *mutants)
	if n < *mutants/10 || n > *mutants*9/10 {
		t.Errorf("%d of %d headers were accepted: that shows nothing", n, *mutants)
	}
	if *mutants > 1000 {
		t.Logf("%d were refused that QEMU opens", len(refused)-len(openAll(t, refused)))
	}
}

// TestDropBitmaps: bitmaps are gone, and nothing else is.
func TestDropBitmaps(t *testing.T) {
	for _, compat := range []string{"0.10", "1.1"} {
		dir := t.TempDir()
		qemuImg(t, dir, "create", "-q", "-f", "raw", "base", "1M")
		qemuImg(t, dir, "create", "-q", "-f", "qcow2", "-o", "compat="+compat, "-F", "raw", "-b", "base", "image")
		file, err := os.OpenFile(filepath.Join(dir, "image"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if compat == "1.1" {
			qemuImg(t, dir, "bitmap", "--add", "image", "changes")
		} else { // which cannot have any, but can say so
			h, err := ReadHeader(file)
			if err != nil {
				t.Fatal(err)
			}
			h.extensions = append(h.extensions, extension{extensionBitmaps, []byte(bitmaps(1, 0, 32, 1<<18))})
			if err := h.write(file, h.BackingFile, h.BackingFormat); err != nil {
				t.Fatal(err)
			}
		}
		before, err := ReadHeader(file)
		if err != nil || !before.Bitmaps() {
			t.Fatalf("%s: %+v, %v", compat, before, err)
		}
		if err := DropBitmaps(file); err != nil {
			t.Fatal(err)
		}
		after, err := ReadHeader(file)
		if err != nil || after.Bitmaps() || after.Autoclear != 0 || after.BackingFile != "base" || after.BackingFormat != "raw" || len(after.extensions) != len(before.extensions)-1 {
			t.Errorf("%s: %+v, %v", compat, after, err)
		}
		if info := qemuImg(t, dir, "info", "image"); strings.Contains(info, "changes") || strings.Contains(info, "inconsistent") || !strings.Contains(info, "backing file: base") {
			t.Errorf("%s: qemu-img info:\n%s", compat, info)
		}
	}
}
