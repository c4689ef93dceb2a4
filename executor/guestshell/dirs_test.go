package guestshell

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Only directories that cannot be created or written are listed, whatever else the
// guest's shell prints.
func TestMakeDirs(t *testing.T) {
	good := filepath.Join(t.TempDir(), "it's", "here")
	sh := exec.Command("sh")
	sh.Stdin = strings.NewReader("echo Welcome to /srv\n" + makeDirsPOSIX([]string{good, "/dev/null/builds"}))
	stdout, err := sh.Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := answers(string(stdout)); !slices.Equal(got, []string{"/dev/null/builds"}) {
		t.Errorf("got %q of %q", got, stdout)
	}
	if _, err := os.Stat(good); err != nil {
		t.Error(err)
	}
}
