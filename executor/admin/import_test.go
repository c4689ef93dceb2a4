package admin

import (
	"testing"

	"gitlab-sardine-executor/executor"
	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/oci"
)

// The settings of a section apply to the machines of its images, and to imported ones,
// and to no others.
func TestDomainOfASection(t *testing.T) {
	settings, err := config.Parse([]byte(`
[defaults]
omit_backingstore = "no"
[[image]]
match = "registry.example.com/macos/**"
domain = "/etc/macos.xml"
omit_backingstore = "yes"
[[image]]
match = "registry.example.com/macos/old/**"
trusted = true
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		image, template string
		trusted         bool
		omit            string
	}{
		{"registry.example.com/macos/sonoma:14", "/etc/macos.xml", false, "yes"},
		{"registry.example.com/macos/old/lion:10", "", true, "no"},
		{"registry.example.com/linux:1", "", false, "no"},
	} {
		spec := executor.SpecFor(&oci.Image{}, executor.FetchAndCloneOptions{Settings: settings.For(test.image)})
		if spec.Template != test.template || spec.Trusted != test.trusted || spec.OmitBackingStore != test.omit {
			t.Errorf("%s: template %q, trusted %v, omit_backingstore %q", test.image, spec.Template, spec.Trusted, spec.OmitBackingStore)
		}
		base := baseOf(&Imported{Image: &oci.Image{}}, oci.Reference{}, settings.For(test.image))
		if base.Template != test.template || base.Trusted != test.trusted || base.OmitBackingStore != test.omit {
			t.Errorf("%s imported: template %q, trusted %v, omit_backingstore %q", test.image, base.Template, base.Trusted, base.OmitBackingStore)
		}
	}
}
