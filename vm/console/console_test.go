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

// What a kernel prints about a panic is longer than what is shown of it.
func TestTailOfAPanic(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console.log")
	const message = "[ 5.1] Kernel panic - not syncing: Attempted to kill init!"
	trace := strings.Repeat("[ 5.1]  ? do_fault+0x1a4/0x410\n", 3*lastLines)
	for name, log := range map[string]string{
		"message alone": "booting\n" + message,
		"call trace":    "booting\n" + message + "\n" + trace + "[ 5.1] RSP: 0",
	} {
		if err := os.WriteFile(path, []byte(log), 0o600); err != nil {
			t.Fatal(err)
		}
		tail := Tail(path)
		lines := strings.Split(tail, "\n")
		if !strings.Contains(tail, message) || len(lines) > lastLines || !strings.HasSuffix(log, lines[len(lines)-1]) {
			t.Errorf("%s:\n%s", name, tail)
		}
	}
}
