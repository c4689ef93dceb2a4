// Package qcow2test creates and reads qcow2 images in tests.
package qcow2test

import (
	"os"
	"os/exec"
	"strconv"
	"testing"

	"gitlab-sardine-executor/internal/qcow2"
)

// Create creates an empty image of that virtual size, in bytes.
func Create(t testing.TB, path string, size int64) {
	t.Helper()
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", path, strconv.FormatInt(size, 10)).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
}

// Header reads the header of an image.
func Header(t testing.TB, path string) *qcow2.Header {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h, err := qcow2.ReadHeader(f)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return h
}
