package export

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The default machine of a disk that boots by UEFI alone has UEFI.
func TestDefaultDomainFirmware(t *testing.T) {
	dir := t.TempDir()
	disk := func(name string, code byte) packedFile {
		content := make([]byte, 1<<20)
		content[0], content[446+4], content[510], content[511] = code, 0xef, 0x55, 0xaa // an EFI system partition
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return packedFile{path: path, name: name, format: "raw", top: true}
	}
	blank := packedFile{path: filepath.Join(dir, "blank"), name: "blank", format: "raw", top: true}
	if err := os.WriteFile(blank.path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	uefi, both := disk("uefi", 0), disk("both", 0xeb)
	for _, c := range []struct {
		name, arch string
		files      []packedFile
		want       bool
	}{
		{"UEFI alone", "amd64", []packedFile{uefi}, true},
		{"data first", "amd64", []packedFile{blank, uefi}, true},
		{"both", "amd64", []packedFile{both, uefi}, false},
		{"nothing", "amd64", []packedFile{blank}, false},
		{"arm64", "arm64", []packedFile{blank}, true},
	} {
		doc, err := defaultDomain(c.arch, c.files)
		if err != nil || strings.Contains(string(doc), `<os firmware="efi">`) != c.want {
			t.Errorf("%s: %v\n%s", c.name, err, doc)
		}
	}
}
