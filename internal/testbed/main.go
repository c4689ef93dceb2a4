package testbed

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gitlab-sardine-executor/internal/testbed/host"
)

// What tests get from outside their host.
const (
	guestVariable    = "TESTBED_GUEST"    // path of the test guest's disk
	programsVariable = "TESTBED_PROGRAMS" // directory of the programs built for tests
)

// Main runs the tests of a package on a host of its own, and does not return.
// Before that it builds the programs that the tests want, given by import path,
// as the user who runs the tests: see [Program].
func Main(m *testing.M, programs ...string) {
	code, err := run(m, programs)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testbed:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(m *testing.M, programs []string) (int, error) {
	if host.Inside() {
		return m.Run(), nil
	}
	if os.Getenv(programsVariable) == "" {
		dir, err := os.MkdirTemp("", "testbed")
		if err != nil {
			return 1, err
		}
		defer os.RemoveAll(dir)
		if err := build(dir, programs); err != nil {
			return 1, err
		}
		guest, err := guestPath()
		if err != nil {
			return 1, err
		}
		os.Setenv(programsVariable, dir)
		os.Setenv(guestVariable, guest)
	}
	return host.Rerun()
}

func build(dir string, programs []string) error {
	for _, program := range programs {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, filepath.Base(program)), program)
		if output, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go build %s: %w\n%s", program, err, output)
		}
	}
	return nil
}

// Program is the path of a program that [Main] built, by its name. Every user of
// the host can run it.
func Program(t testing.TB, name string) string {
	t.Helper()
	// Where it was built only one user may look.
	path := filepath.Join(host.TempDir, "bin", name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	program, err := os.ReadFile(filepath.Join(os.Getenv(programsVariable), name))
	if err != nil {
		t.Fatalf("program %s was not built by testbed.Main: %v", name, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// Guest is the path of the test guest's disk, a qcow2 file (scripts/guest). User
// and password are "vagrant".
func Guest(t testing.TB) string {
	t.Helper()
	path := os.Getenv(guestVariable)
	if path == "" {
		var err error
		if path, err = guestPath(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("the test guest is missing; run: make guest (%v)", err)
	}
	return path
}

// guestPath asks the script that builds the guest where it puts it.
func guestPath() (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	path, err := exec.Command(filepath.Join(root, "scripts", "build-guest.sh"), "--path").Output()
	if err != nil {
		return "", fmt.Errorf("ask scripts/build-guest.sh for the test guest: %w", err)
	}
	return strings.TrimSpace(string(path)), nil
}

// GuestConfig is the path of the test guest's VM config, as sardinecake images
// carry it.
func GuestConfig(t testing.TB) string {
	t.Helper()
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(root, "scripts", "guest", "vmconfig.json")
}

// moduleRoot is the directory of go.mod: tests run in that of their package.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("no go.mod above the working directory")
		}
		dir = parent
	}
}
