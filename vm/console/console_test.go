package console

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPanicWatch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console.log")
	w := &PanicWatch{Path: path}
	if w.Seen() {
		t.Error("seen before there is a console")
	}
	write := func(text string) {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	for _, part := range []string{"booting\n", strings.Repeat("x", 3*scanMax), "\n[ 1.0] Kernel pa"} {
		write(part)
		if w.Seen() {
			t.Errorf("seen after %.20q", part)
		}
	}
	write("nic - not syncing: Attempted to kill init!\n")
	if !w.Seen() {
		t.Error("not seen although it was written in two parts")
	}
}
