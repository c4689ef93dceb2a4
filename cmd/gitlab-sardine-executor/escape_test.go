package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"gitlab-sardine-executor/cmd/gitlab-sardine-executor/command"
	"gitlab-sardine-executor/executor/admin"
	"gitlab-sardine-executor/oci"
)

const hostileText = "a\x1b[31m\nStore: b\u009b2J\u202ec"

// No text of an image sends control characters to the terminal.
func TestEscapeControl(t *testing.T) {
	report := &admin.ImageReport{Inspection: &oci.Inspection{}}
	report.Reference, report.Format, report.OS, report.Architecture = hostileText, hostileText, hostileText, hostileText
	report.Evidence, report.Prepare = []string{hostileText}, []string{hostileText}
	report.Disks = []oci.InspectedDisk{{Name: hostileText, Content: hostileText}}
	report.Guest.Users = []oci.User{{Username: hostileText}}
	report.Guest.Services = []oci.Service{{Service: hostileText}}
	var out, stderr bytes.Buffer
	if err := printReport(&out, report); err != nil {
		t.Fatal(err)
	}
	if status := run([]string{"gitlab-sardine-executor", "inspect", "oci:" + filepath.Join(t.TempDir(), "\x1b[31mnone")}, &out, &stderr); status == 0 {
		t.Error("inspect found an image that does not exist")
	}
	if !strings.Contains(stderr.String(), `\x1b[31mnone`) {
		t.Errorf("the error does not name the image: %q", stderr.String())
	}
	for _, text := range []string{out.String(), stderr.String()} {
		if i := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("%q is printed: %q", text[i:][:1], text)
		}
	}
	if n := strings.Count(out.String(), "\nStore:"); n != 1 {
		t.Errorf("%d lines about the store:\n%s", n, out.String())
	}
	if plain := "Größe: 3, „quoted“"; command.EscapeControl(plain) != plain {
		t.Errorf("%q became %q", plain, command.EscapeControl(plain))
	}
}
