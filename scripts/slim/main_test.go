package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A second build leaves the files that are right, replaces others, and removes those of an older
// version of the module.
func TestWriteAgain(t *testing.T) {
	t.Chdir(filepath.Join("..", ".."))
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.Rel(root, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	modFile, err := write(dir)
	if err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(modFile); err != nil || !strings.Contains(string(content), "replace "+module) {
		t.Errorf("%v: %s", err, content)
	}
	help, app, old := filepath.Join(dir, "cli", "help.go"), filepath.Join(dir, "cli", "app.go"), filepath.Join(dir, "cli", "old.go")
	before, err := os.Stat(app)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{help, old} {
		if err := os.WriteFile(path, []byte("package cli\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := write(dir); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(app); err != nil || !os.SameFile(before, after) || !before.ModTime().Equal(after.ModTime()) {
		t.Errorf("app.go was written again: %v", err)
	}
	content, err := os.ReadFile(help)
	if err != nil || !strings.Contains(string(content), "func ShowAppHelp") || strings.Contains(string(content), "text/template") {
		t.Errorf("help.go: %v\n%s", err, content)
	}
	if _, err := os.Lstat(old); err == nil {
		t.Error("old.go stays")
	}
}
