package kvm

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A successful probe counts until the host reboots, a failed one for some minutes.
func TestKVMIsProbedAgain(t *testing.T) {
	bin, cache := t.TempDir(), t.TempDir()
	device = filepath.Join(bin, "kvm")
	t.Cleanup(func() { device = "/dev/kvm" })
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	qemu := func(status string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(bin, "qemu-system-x86_64"), []byte("#!/bin/sh\nexit "+status+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	works := func(want bool) {
		t.Helper()
		if err := Works(t.Context(), cache); (err == nil) != want {
			t.Errorf("want that it works: %v, got %v", want, err)
		}
	}
	age := func() {
		t.Helper()
		if err := os.Chtimes(filepath.Join(cache, fmt.Sprintf("kvm-%d", os.Geteuid())), time.Time{}, time.Now().Add(-doubt)); err != nil {
			t.Fatal(err)
		}
	}
	qemu("1")
	works(false)
	qemu("33") // as the boot sector ends it
	works(false)
	age()
	works(true)
	qemu("1")
	age()
	works(true)
}
