//go:build boot

package boot

import (
	"context"
	"log"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/host"
)

// What a test's process of a mode's user is told.
const (
	modeVariable = "BOOTTEST_MODE" // "session" or "system"
	dirVariable  = "BOOTTEST_DIR"  // a directory of that user
)

// patience is the deadline of one test in one mode: far more than it needs.
const patience = 20 * time.Minute

func TestMain(m *testing.M) {
	if os.Getenv(modeVariable) != "" {
		os.Exit(m.Run())
	}
	if host.Inside() {
		if output, err := exec.Command("ip", "addr", "add", hostAddress+"/32", "dev", "lo").CombinedOutput(); err != nil {
			log.Fatalf("ip: %v: %s", err, output)
		}
	}
	testbed.Main(m)
}

// hostAddress is an address of the host that is no guest's, either: passt gives its
// guest the one of the uplink (RFC 5737 has this one for documentation).
const hostAddress = "198.51.100.1"

// eachMode runs a test in both modes; see [inMode].
func eachMode(t *testing.T, test func(t *testing.T, l *lab)) {
	t.Helper()
	if os.Getenv(modeVariable) != "" {
		test(t, newLab(t))
		return
	}
	testbed.EachMode(t, func(t *testing.T, mode *testbed.Mode) { inMode(t, mode) })
}

// mostlyIn runs a test in one mode, and at night in the other as well: the code depends
// little on the mode.
func mostlyIn(t *testing.T, name string, test func(t *testing.T, l *lab)) {
	t.Helper()
	switch {
	case nightly:
		eachMode(t, test)
	case name == "system":
		systemOnly(t, test)
	default:
		sessionOnly(t, test)
	}
}

// systemOnly runs a test as root, for what no ordinary user may do.
func systemOnly(t *testing.T, test func(t *testing.T, l *lab)) {
	t.Helper()
	if os.Getenv(modeVariable) != "" {
		test(t, newLab(t))
		return
	}
	t.Run("system", func(t *testing.T) { inMode(t, testbed.System(t)) })
}

// sessionOnly runs a test as an ordinary user: one mode stands for both.
func sessionOnly(t *testing.T, test func(t *testing.T, l *lab)) {
	t.Helper()
	if os.Getenv(modeVariable) != "" {
		test(t, newLab(t))
		return
	}
	t.Run("session", func(t *testing.T) { inMode(t, testbed.Session(t)) })
}

// inMode runs the test that calls it again in a process of the mode's user, so
// that package vm is used with the rights that it has in real life.
func inMode(t *testing.T, mode *testbed.Mode) {
	t.Helper()
	dir := mode.Dir(t)
	if mode.Name == "session" { // the first connection starts the daemon, which outlives the test
		mode.Virsh(t, "list")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// The last part is the mode.
	name := strings.Split(path.Dir(t.Name()), "/")
	cmd := mode.Command(ctx, ownBinary(t), "-test.run=^"+strings.Join(name, "$/^")+"$", "-test.v", "-test.count=1")
	cmd.Env = append(cmd.Env,
		modeVariable+"="+mode.Name, dirVariable+"="+dir, guestVariable+"="+readableGuest(t, mode))
	output, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("as the user of this mode: %v\n%s", err, output)
	} else {
		t.Logf("%s", output)
	}
}

// ownBinary is this program where every user can run it.
func ownBinary(t *testing.T) string {
	t.Helper()
	path := filepath.Join(host.TempDir, "boot.test")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// readableGuest is the test guest's disk where the mode's user can read it.
func readableGuest(t testing.TB, mode *testbed.Mode) string {
	t.Helper()
	path := filepath.Join(host.TempDir, "guest-"+mode.Name+".qcow2")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	disk, err := os.ReadFile(testbed.Guest(t))
	if err != nil {
		t.Fatal(err)
	}
	// Each mode has its own: the system daemon gives it to QEMU's user.
	if err := os.WriteFile(path, disk, 0o444); err != nil {
		t.Fatal(err)
	}
	return path
}

// run runs a program and returns what it writes; it is fatal if it fails.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	// Of use in cleanups too, where the test's context is done.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	defer cancel()
	output, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, output)
	}
	return string(output)
}
