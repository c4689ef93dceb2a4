package disk

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// stranger is a user that owns nothing and is in no group.
const stranger = 65533

func TestUnreachable(t *testing.T) {
	base, err := os.MkdirTemp("/tmp", "reach") // others can enter /tmp, but not a test's directory
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	home := filepath.Join(base, "home")
	storage := filepath.Join(home, "storage", "clones")
	if err := os.MkdirAll(storage, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	if blocked := Unreachable(storage, stranger, stranger); blocked != nil {
		t.Errorf("a directory for all: %v", blocked)
	}
	if err := os.Chmod(home, 0o700); err != nil {
		t.Fatal(err)
	}
	blocked := Unreachable(storage, stranger, stranger)
	if blocked == nil || blocked.Dir != home || blocked.Path != storage {
		t.Fatalf("got %v", blocked)
	}
	if !strings.HasSuffix(blocked.Command(), " "+home) || !strings.Contains(blocked.Error(), blocked.Command()) {
		t.Errorf("the command is %q: %v", blocked.Command(), blocked)
	}
	if blocked := Unreachable(filepath.Join(storage, "not", "yet"), os.Geteuid(), os.Getegid()); blocked != nil {
		t.Errorf("what the owner can enter, and does not exist yet: %v", blocked)
	}
	if os.Geteuid() == 0 { // the threads of this process are root's as before
		if _, err := os.ReadDir(home); err != nil || os.Geteuid() != 0 {
			t.Errorf("after that: user %d, %v", os.Geteuid(), err)
		}
	}
	if out, err := exec.Command("sh", "-c", blocked.Command()).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", blocked.Command(), err, out)
	}
	if blocked := Unreachable(storage, stranger, stranger); blocked != nil {
		t.Errorf("the command does not help: %v", blocked)
	}
}

// Without root, mode and owner decide.
func TestJudge(t *testing.T) {
	dir := t.TempDir()
	uid, gid := uint32(os.Geteuid()), uint32(os.Getegid())
	if uid == 0 {
		uid, gid = 1000, 1000
		if err := os.Chown(dir, 1000, 1000); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		mode                 os.FileMode
		owner, member, other bool
	}{
		{0o700, true, false, false}, {0o710, true, true, false}, {0o701, true, false, true}, {0o077, false, true, true},
	} {
		if err := os.Chmod(dir, c.mode); err != nil {
			t.Fatal(err)
		}
		if judge(dir, uid, nil) == nil != c.owner || judge(dir, stranger, []uint32{gid}) == nil != c.member || judge(dir, stranger, nil) == nil != c.other {
			t.Errorf("mode %o is judged wrongly", c.mode)
		}
	}
}
