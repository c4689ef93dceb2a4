package executor

import (
	"strings"
	"testing"

	"gitlab-sardine-executor/executor/failure"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/space"
	"gitlab-sardine-executor/oci/store"
	"gitlab-sardine-executor/vm/virt"
)

// domainFor is a domain with a disk; its name is not known before the pull.
func domainFor(arch, more string) []byte {
	return []byte(`<domain type="kvm"><name>a</name><memory unit="MiB">512</memory><vcpu>1</vcpu><os><type arch="` + arch + `">hvm</type></os><devices>` +
		`<disk type="file" device="disk"><source file="/images/a.qcow2"/><target dev="vda" bus="virtio"/></disk>` + more + `</devices></domain>`)
}

// TestCheckImage: what the small layers of an image show is known before its disks are
// pulled, and is the fault of the job.
func TestCheckImage(t *testing.T) {
	host, err := virt.Open(t.Context(), "test:///default")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	disks := []oci.InspectedDisk{{Content: "qcow2"}}
	tests := map[string]struct {
		image    oci.Inspection
		settings string
		text     string // of the error; empty for a good one
	}{
		"no domain XML":        {oci.Inspection{Architecture: "amd64", Disks: disks}, "", ""},
		"domain XML":           {oci.Inspection{DomainXML: domainFor("x86_64", ""), Disks: disks}, "", ""},
		"broken domain XML":    {oci.Inspection{DomainXML: []byte("<domain><os>"), Disks: disks}, "", "domain XML of the image refused"},
		"hostile domain XML":   {oci.Inspection{DomainXML: domainFor("x86_64", `<disk type="file" device="lun"><target dev="vdb"/></disk>`), Disks: disks}, "", "device"},
		"unknown architecture": {oci.Inspection{Architecture: "mips", Disks: disks}, "", `no default machine for "mips"`},
		"in a template":        {oci.Inspection{DomainXML: []byte("<domain><os>"), Disks: disks}, "domain = '/etc/a.xml'", ""},
		"a disk twice":         {oci.Inspection{DomainXML: domainFor("x86_64", `<disk type="file" device="disk"><source file="a.qcow2"/><target dev="vdb"/></disk>`), Disks: disks}, "", "has the layer"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			settings := parse(t, "[[image]]\nmatch = '**'\n"+test.settings)
			err := CheckImage(t.Context(), host, settings.For("example.com/a"), &test.image)
			if test.text == "" {
				if err != nil {
					t.Errorf("got %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.text) || failure.Classify(err) != failure.Build {
				t.Errorf("got %v, want a build failure with %q", err, test.text)
			}
		})
	}
	o := PullLimits(parse(t, "[defaults]\nstorage_reserve = '5GiB'\nmax_disk = '1GiB'"), parse(t, "[defaults]\nmax_disk = '1GiB'").For("a"), store.PullOptions{})
	if o.MaxDisk != 1<<30 || o.Reserve != (space.Reserve{Bytes: 5 << 30}) || o.Check(&oci.Inspection{DomainXML: []byte("x")}) == nil {
		t.Errorf("limits: %+v", o)
	}
	arm := parse(t, "[[image]]\nmatch = 'arm'\narchitecture = 'arm64'")
	if o := PullLimits(arm, arm.For("arm"), store.PullOptions{}); o.Architecture != "arm64" {
		t.Errorf("architecture %q, want that of the settings", o.Architecture)
	}
	if o := PullLimits(arm, arm.For("arm"), store.PullOptions{Architecture: "amd64"}); o.Architecture != "amd64" {
		t.Errorf("architecture %q, want that of the command line", o.Architecture)
	}
	if err := o.Check(&oci.Inspection{DomainXML: domainFor("s390x", ""), Disks: disks}); err != nil {
		t.Errorf("without a host: %v", err)
	}
}
