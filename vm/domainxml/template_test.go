package domainxml_test

import (
	"cmp"
	"fmt"
)

// A domain is an ordinary machine with the additions of a test. Empty fields have ordinary
// defaults.
type domain struct {
	attrs   string // of <domain>
	vcpu    string // <vcpu>…</vcpu>
	memory  string // <memory>…</memory>
	top     string // children of <domain> before <os>
	osAttrs string
	osType  string // <type>…</type>
	os      string // more children of <os>
	disk    string // the first disk
	devices string // more children of <devices>
	bottom  string // children of <domain> after <devices>
}

const ordinaryDisk = `<disk type="file" device="disk"><driver name="qemu" type="qcow2"/>
<source file="disk.qcow2"/><target dev="vda" bus="virtio"/></disk>`

func (d domain) String() string {
	return fmt.Sprintf(`<domain type="qemu" %s>
  <name>guest</name>
  %s
  %s
  %s
  <os %s>%s%s</os>
  <devices>
    %s
    %s
  </devices>
  %s
</domain>`,
		d.attrs,
		cmp.Or(d.memory, `<memory unit="KiB">262144</memory>`),
		cmp.Or(d.vcpu, `<vcpu>1</vcpu>`),
		d.top,
		d.osAttrs,
		cmp.Or(d.osType, `<type arch="x86_64" machine="q35">hvm</type>`),
		d.os,
		cmp.Or(d.disk, ordinaryDisk),
		d.devices,
		d.bottom)
}
