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
	guestVariable     = "TESTBED_GUEST"             // path of the test guest's disk
	fullGuestVariable = "TESTBED_FULL_GUEST"        // path of the full guest's
	trixieVariable    = "TESTBED_FULL_GUEST_TRIXIE" // that of Debian 13
	arm64Variable     = "TESTBED_GUEST_ARM64"       // that of the guest for arm64
	programsVariable  = "TESTBED_PROGRAMS"          // directory of the programs built for tests
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
		os.Setenv(programsVariable, dir)
		for variable, script := range guestScripts {
			path, err := guestPath(script)
			if err != nil {
				return 1, err
			}
			os.Setenv(variable, path)
		}
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

// guestScripts build the guests, and say where they put them. The suite may follow.
var guestScripts = map[string]string{
	guestVariable: "build-guest.sh", fullGuestVariable: "build-full-guest.sh", trixieVariable: "build-full-guest.sh trixie",
	arm64Variable: "build-guest.sh arm64",
}

// Guest is the path of the test guest's disk, a qcow2 file (scripts/guest). User
// and password are "vagrant".
func Guest(t testing.TB) string {
	t.Helper()
	return guest(t, guestVariable, "make guest")
}

// FullGuest is the path of the disk of a whole Debian with cloud-init, which knows
// no user that could log in (scripts/build-full-guest.sh).
func FullGuest(t testing.TB) string {
	t.Helper()
	return guest(t, fullGuestVariable, "make full-guest")
}

// FullGuestTrixie is a [FullGuest] of Debian 13.
func FullGuestTrixie(t testing.TB) string {
	t.Helper()
	return guest(t, trixieVariable, "make full-guest-trixie")
}

// GuestARM64 is the path of the disk of a [Guest] for arm64.
func GuestARM64(t testing.TB) string {
	t.Helper()
	return guest(t, arm64Variable, "make arm64-guest")
}

func guest(t testing.TB, variable, target string) string {
	t.Helper()
	path := os.Getenv(variable)
	if path == "" {
		var err error
		if path, err = guestPath(guestScripts[variable]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("a guest is missing; run: %s (%v)", target, err)
	}
	return path
}

// guestPath asks a script that builds a guest where it puts it.
func guestPath(script string) (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	name, suite, _ := strings.Cut(script, " ")
	path, err := exec.Command(filepath.Join(root, "scripts", name), append([]string{"--path"}, strings.Fields(suite)...)...).Output()
	if err != nil {
		return "", fmt.Errorf("ask scripts/%s for its guest: %w", script, err)
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
