package admin

import (
	"testing"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/oci"
)

// TestFirmwareOf: what is known before the pull.
func TestFirmwareOf(t *testing.T) {
	of := func(os string) []byte { return []byte("<domain><name>a</name><os" + os + "</os></domain>") }
	for name, c := range map[string]struct {
		doc      []byte
		arch     string
		settings string
		want     string
	}{
		"no domain XML":    {nil, "amd64", "", "unknown until the image is pulled: its disk decides"},
		"arm64":            {nil, "arm64", "", "uefi"},
		"setting":          {of(" firmware='efi'>"), "amd64", "firmware = 'bios'", "bios (setting firmware)"},
		"template":         {of(">"), "amd64", "domain = '/etc/a.xml'", "that of the template /etc/a.xml"},
		"BIOS":             {of(">"), "amd64", "", "bios"},
		"UEFI":             {of(" firmware='efi'>"), "amd64", "", "uefi"},
		"UEFI by path":     {of("><loader type='pflash'>/x.fd</loader>"), "amd64", "", "uefi"},
		"secure":           {of(" firmware='efi'><firmware><feature enabled='yes' name='secure-boot'/></firmware>"), "amd64", "", "uefi-secure"},
		"secure by loader": {of(" firmware='efi'><loader secure='yes'/>"), "amd64", "", "uefi-secure"},
		"declined":         {of(" firmware='efi'><firmware><feature enabled='no' name='secure-boot'/></firmware>"), "amd64", "", "uefi"},
		"broken":           {[]byte("<domain><os"), "amd64", "", "unknown: the domain XML is not valid"},
	} {
		settings, err := config.Parse([]byte("[[image]]\nmatch = 'a'\n" + c.settings))
		if err != nil {
			t.Fatal(err)
		}
		if got := firmwareOf(nil, &oci.Inspection{DomainXML: c.doc, Architecture: c.arch}, settings.For("a")); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}
