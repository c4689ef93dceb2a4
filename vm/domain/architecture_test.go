package domain

import (
	"errors"
	"runtime"
	"strings"
	"testing"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/errdefs"
)

func machineFor(arch string) *libvirtxml.Domain {
	return &libvirtxml.Domain{Type: "kvm", OS: &libvirtxml.DomainOS{Type: &libvirtxml.DomainOSType{Arch: arch}}}
}

// TestArchitecture: an image alone cannot make the host emulate.
func TestArchitecture(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the cases are those of an amd64 host")
	}
	both := []string{"x86_64", "i686", "aarch64", "s390x"}
	tests := map[string]struct {
		arch   string
		source Source
		has    []string
		text   string // of the error; empty for a good one
	}{
		"the host's":                      {"x86_64", Source{}, both, ""},
		"32 bits":                         {"i686", Source{}, both, ""},
		"the host's, and another allowed": {"x86_64", Source{Emulate: "arm64"}, both, ""},
		"another":                         {"aarch64", Source{}, both, `use an image for amd64; to emulate it, which is slow, the administrator sets architecture = "arm64" for the image`},
		"another, for an allowed one":     {"s390x", Source{Emulate: "arm64"}, both, "use an image for amd64"},
		"another, trusted":                {"aarch64", Source{Trusted: true}, both, "use an image for amd64"},
		"allowed":                         {"aarch64", Source{Emulate: "arm64"}, both, ""},
		"allowed, without emulator":       {"aarch64", Source{Emulate: "arm64"}, []string{"x86_64"}, "install QEMU's emulator for aarch64 (Debian: apt install qemu-system-arm;"},
		"in a template":                   {"aarch64", Source{Template: "/x.xml"}, both, ""},
		"in a template, without emulator": {"aarch64", Source{Template: "/x.xml"}, []string{"x86_64"}, "install QEMU's emulator"},
		"not known":                       {"aarch64", Source{}, nil, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			err := CheckArchitecture(test.source, machineFor(test.arch), test.has)
			if test.text == "" && err != nil || test.text != "" && (!errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), test.text)) {
				t.Errorf("got %v, want %q", err, test.text)
			}
		})
	}
}

// TestForeignIsEmulated: the KVM of the host is of no use to another architecture.
func TestForeignIsEmulated(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the cases are those of an amd64 host")
	}
	d := machineFor("aarch64")
	warning, err := Accelerate(t.Context(), d, AccelAuto, t.TempDir())
	if err != nil || d.Type != "qemu" || !strings.Contains(warning, "for aarch64, and this host is amd64: the machine is emulated") {
		t.Errorf("type %s, warning %q, %v", d.Type, warning, err)
	}
	if _, err := Accelerate(t.Context(), machineFor("aarch64"), AccelKVM, t.TempDir()); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("with accel = kvm: %v", err)
	}
}
