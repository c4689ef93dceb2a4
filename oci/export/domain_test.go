package export

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gitlab-sardine-executor/oci/packing"
)

// The default machine of a disk that boots by UEFI alone has UEFI.
func TestDefaultDomainFirmware(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	disk := func(name string, code byte) packing.File {
		content := make([]byte, 1<<20)
		content[0], content[446+4], content[510], content[511] = code, 0xef, 0x55, 0xaa // an EFI system partition
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return packing.File{Path: path, Name: name, Format: "raw", Top: true}
	}
	blank := packing.File{Path: filepath.Join(dir, "blank"), Name: "blank", Format: "raw", Top: true}
	if err := os.WriteFile(blank.Path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	uefi, both := disk("uefi", 0), disk("both", 0xeb)
	for _, c := range []struct {
		name, arch string
		files      []packing.File
		want       bool
	}{
		{"UEFI alone", "amd64", []packing.File{uefi}, true},
		{"data first", "amd64", []packing.File{blank, uefi}, true},
		{"both", "amd64", []packing.File{both, uefi}, false},
		{"nothing", "amd64", []packing.File{blank}, false},
		{"arm64", "arm64", []packing.File{blank}, true},
	} {
		doc, err := defaultDomain(c.arch, c.files)
		if err != nil || strings.Contains(string(doc), `<os firmware="efi">`) != c.want {
			t.Errorf("%s: %v\n%s", c.name, err, doc)
		}
	}
}
