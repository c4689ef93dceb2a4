package domainxml_test

import (
	"encoding/xml"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf16"

	"gitlab-sardine-executor/vm/domainxml"
)

// A hostile is a malicious document. It contains canaries: /etc/canary for a file of the host,
// canary.example for a host of the network, "canary" in other values that must not be kept.
type hostile struct {
	name string
	doc  string
	// The expected result, one of the three:
	refused string // the element that a refusal names
	whole   bool   // the document is refused as such
	dropped string // what Dropped lists; "silently" for what belongs to one machine alone
}

// TestHostile checks that each document is refused with the name of the element, or that its
// harmful parts are dropped.
func TestHostile(t *testing.T) {
	all := hostiles()
	if len(all) < 60 {
		t.Errorf("%d hostile documents, want 60 at least", len(all))
	}
	for _, h := range all {
		t.Run(h.name, func(t *testing.T) {
			result, err := domainxml.Rebuild([]byte(h.doc), domainxml.Options{Disks: layers})
			if h.refused != "" || h.whole {
				wantRefused(t, err, h.refused)
				if strings.ContainsFunc(err.Error(), unicode.IsControl) || len(err.Error()) > 600 {
					t.Errorf("the error would upset a job log: %q", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.dropped != "silently" && !slices.Contains(result.Dropped, h.dropped) {
				t.Errorf("Dropped = %q, want %q among it", result.Dropped, h.dropped)
			}
			out := marshal(t, result.Domain)
			if at := strings.Index(out, "canary"); at >= 0 {
				t.Errorf("a canary is alive: …%s…", out[max(0, at-60):min(len(out), at+60)])
			}
			harmless(t, out)
			again(t, result, domainxml.Options{Disks: layers})
		})
	}
}

// harmless checks that a marshalled result has no path or URL except the source of randomness,
// no element that refers to the host, and no namespace.
func harmless(t testing.TB, doc string) {
	t.Helper()
	forbidden := []string{
		"hostdev", "filesystem", "emulator", "kernel", "initrd", "cmdline", "dtb", "seclabel", "metadata", "memoryBacking",
		"numatune", "cputune", "iothreads", "resource", "launchSecurity", "idmap", "shmem", "memory/device", "smartcard",
		"sysinfo", "table", "nvram", "bootloader", "graphics", "redirdev", "vsock", "lease", "script", "mac", "log",
		"backingStore", "mirror", "encryption", "auth", "host", "commandline", "alias", "name", "uuid", "init",
	}
	var path []string
	dec := xml.NewDecoder(strings.NewReader(doc))
	for {
		tok, err := dec.Token()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatalf("the result is not XML: %v", err)
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			path = append(path, tok.Name.Local)
			if tok.Name.Space != "" {
				t.Errorf("%v has the namespace %q", path, tok.Name.Space)
			}
			if slices.Contains(forbidden, tok.Name.Local) {
				t.Errorf("the result has the element %v", path)
			}
			for _, a := range tok.Attr {
				if strings.Contains(a.Value, "/") {
					t.Errorf("%v/@%s names %q", path, a.Name.Local, a.Value)
				}
			}
		case xml.CharData:
			if s := strings.TrimSpace(string(tok)); strings.Contains(s, "/") && s != "/dev/urandom" {
				t.Errorf("%v names %q", path, s)
			}
		case xml.EndElement:
			path = path[:len(path)-1]
		default:
			t.Errorf("the result has a %T", tok)
		}
	}
}

func hostiles() []hostile {
	return slices.Concat(hostileDocuments(), hostileMachines(), hostileDisks(), hostileNICs(), hostileDevices())
}

const billionLaughs = `<!DOCTYPE domain [<!ENTITY a "canary"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]>
<domain type="qemu"><name>&c;</name></domain>`

// hostileDocuments attack the parser.
func hostileDocuments() []hostile {
	utf16le := func(s string) string {
		b := []byte{0xff, 0xfe}
		for _, u := range utf16.Encode([]rune(s)) {
			b = append(b, byte(u), byte(u>>8))
		}
		return string(b)
	}
	return []hostile{
		{name: "entity expansion", doc: billionLaughs, whole: true},
		{name: "external entity", whole: true,
			doc: `<!DOCTYPE domain [<!ENTITY x SYSTEM "file:///etc/canary">]><domain type="qemu"><name>&x;</name></domain>`},
		{name: "external document type", doc: `<!DOCTYPE domain SYSTEM "http://canary.example/x.dtd">` + domain{}.String(), whole: true},
		{name: "declaration inside the root", doc: `<domain type="qemu"><!ENTITY x "canary"></domain>`, whole: true},
		{name: "undeclared entity", doc: domain{devices: `<emulator>&canary;</emulator>`}.String(), whole: true},
		{name: "2 MB", doc: `<domain type="qemu"><name>` + strings.Repeat("canary", 2<<20/6) + `</name></domain>`, whole: true},
		{name: "deep nesting", doc: `<domain>` + strings.Repeat("<a>", 5000) + strings.Repeat("</a>", 5000) + `</domain>`, whole: true},
		{name: "many elements", doc: domain{devices: strings.Repeat("<a/>", 30_000)}.String(), whole: true},
		{name: "many attributes", refused: "devices/a",
			doc: domain{devices: "<a " + strings.Repeat("x", 1) + manyAttributes() + "/>"}.String()},
		{name: "huge attribute", doc: domain{devices: `<a x="` + strings.Repeat("c", 100_000) + `"/>`}.String(), refused: "devices/a"},
		{name: "huge text", doc: domain{devices: `<a>` + strings.Repeat("c", 100_000) + `</a>`}.String(), refused: "devices/a"},
		{name: "UTF-16", doc: utf16le(domain{}.String()), whole: true},
		{name: "another encoding", doc: `<?xml version="1.0" encoding="UTF-7"?>` + domain{}.String(), whole: true},
		{name: "broken UTF-8", doc: domain{bottom: "<title>\xff\xfe</title>"}.String(), whole: true},
		{name: "NUL", doc: domain{bottom: "<title>\x00</title>"}.String(), whole: true},
		{name: "control character as a reference", doc: domain{bottom: "<title>&#1;</title>"}.String(), whole: true},
		{name: "not XML", doc: "\x7fELF canary", whole: true},
		{name: "empty", doc: "", whole: true},
		{name: "cut off", doc: domain{}.String()[:200], whole: true},
		{name: "another root", doc: `<network><name>canary</name></network>`, whole: true},
		{name: "root in a namespace", doc: `<domain xmlns="http://canary.example/" type="qemu"/>`, whole: true},
		{name: "two roots", doc: domain{}.String() + domain{}.String(), whole: true},
		{name: "text after the root", doc: domain{}.String() + "canary", whole: true},
		{name: "one attribute twice", refused: "devices/disk/source",
			doc: domain{disk: `<disk type="file"><source file="disk.qcow2" file="/etc/canary"/><target dev="vda"/></disk>`}.String()},
		{name: "attribute in a namespace", dropped: "silently",
			doc: domain{attrs: `xmlns:q="urn:q"`, disk: `<disk type="file" q:type="block"><source file="disk.qcow2" q:dev="/etc/canary" q:file="/etc/canary"/><target dev="vda"/></disk>`}.String()},
		{name: "processing instruction", dropped: "silently", doc: domain{devices: `<?xml-stylesheet href="http://canary.example/"?>`}.String()},
		{name: "comment that is not one", dropped: "devices/emulator-x",
			doc: domain{devices: `<!-- --><emulator-x>/etc/canary</emulator-x><!-- -->`}.String()},
		{name: "byte order mark", doc: "\ufeff" + domain{bottom: `<seclabel><label>canary</label></seclabel>`}.String(), dropped: "silently"},
	}
}

func manyAttributes() string {
	var b strings.Builder
	for i := range 100 {
		b.WriteString(`="" x`)
		b.WriteByte(byte('a' + i/26))
		b.WriteByte(byte('a' + i%26))
	}
	return b.String() + `=""`
}

// hostileMachines attack through everything but devices.
func hostileMachines() []hostile {
	const qemuNS = `xmlns:%s="http://libvirt.org/schemas/domain/qemu/1.0"`
	ns := func(prefix string) string { return strings.Replace(qemuNS, "%s", prefix, 1) }
	loader := func(s string) string { return domain{os: s}.String() }
	return []hostile{
		{name: "kernel", doc: loader(`<kernel>/etc/canary</kernel>`), refused: "os/kernel"},
		{name: "kernel in CDATA", doc: loader(`<kernel><![CDATA[/etc/canary]]></kernel>`), refused: "os/kernel"},
		{name: "initrd", doc: loader(`<initrd>/etc/canary</initrd>`), refused: "os/initrd"},
		{name: "kernel command line", doc: loader(`<cmdline>canary</cmdline>`), refused: "os/cmdline"},
		{name: "device tree", doc: loader(`<dtb>/etc/canary</dtb>`), refused: "os/dtb"},
		{name: "shim", doc: loader(`<shim>/etc/canary</shim>`), refused: "os/shim"},
		{name: "firmware by path", doc: loader(`<loader type="rom">/etc/canary</loader>`), refused: "os/loader"},
		{name: "firmware with a known name elsewhere", doc: loader(`<loader type="pflash">/etc/canary/OVMF_CODE.fd</loader>`), dropped: "os/loader"},
		{name: "firmware in pieces", doc: loader(`<loader type="pflash">/etc/canary<!-- -->/OVMF<![CDATA[_CODE.fd]]></loader>`), dropped: "os/loader"},
		{name: "firmware by name and by path", dropped: "os/loader",
			doc: domain{osAttrs: `firmware="efi"`, os: `<loader readonly="no">/etc/canary</loader>`}.String()},
		{name: "unknown firmware", doc: domain{osAttrs: `firmware="canary"`}.String(), refused: "os/@firmware"},
		{name: "variable store", dropped: "os/nvram",
			doc: domain{osAttrs: `firmware="efi"`, os: `<nvram>/etc/canary</nvram>`}.String()},
		{name: "template of the variable store", dropped: "os/nvram",
			doc: domain{osAttrs: `firmware="efi"`, os: `<nvram template="/etc/canary"/>`}.String()},
		{name: "variable store on the network", dropped: "os/nvram",
			doc: domain{osAttrs: `firmware="efi"`, os: `<nvram type="network"><source protocol="iscsi" name="canary"><host name="canary.example"/></source></nvram>`}.String()},
		{name: "two os elements", refused: "os/kernel",
			doc: domain{top: `<os><kernel>/etc/canary</kernel></os>`}.String()},
		{name: "ACPI table", doc: loader(`<acpi><table type="slic">/etc/canary</table></acpi>`), dropped: "os/acpi"},
		{name: "SMBIOS of the host", doc: loader(`<smbios mode="host"/>`), dropped: "os/smbios"},
		{name: "container init", doc: loader(`<init>/etc/canary</init><initenv name="canary">x</initenv>`), dropped: "os/init"},
		{name: "boot loader of the host", doc: domain{top: `<bootloader>/etc/canary</bootloader><bootloader_args>canary</bootloader_args>`}.String(), dropped: "bootloader"},
		{name: "container", doc: domain{osType: `<type>exe</type>`}.String(), refused: "os/type"},
		{name: "another hypervisor", doc: strings.Replace(domain{}.String(), `type="qemu"`, `type="lxc"`, 1), refused: "@type"},
		{name: "arguments to QEMU", refused: "qemu:commandline",
			doc: domain{attrs: ns("qemu"), bottom: `<qemu:commandline><qemu:arg value="-drive"/><qemu:arg value="file=/etc/canary"/></qemu:commandline>`}.String()},
		{name: "arguments to QEMU under another prefix", refused: "qemu:commandline",
			doc: domain{attrs: ns("harmless"), bottom: `<harmless:commandline><harmless:env name="LD_PRELOAD" value="/etc/canary"/></harmless:commandline>`}.String()},
		{name: "arguments to QEMU in a default namespace", refused: "qemu:commandline",
			doc: domain{bottom: `<commandline xmlns="http://libvirt.org/schemas/domain/qemu/1.0"><arg value="/etc/canary"/></commandline>`}.String()},
		{name: "arguments to QEMU without namespace", dropped: "commandline", doc: domain{bottom: `<commandline><arg value="/etc/canary"/></commandline>`}.String()},
		{name: "arguments to QEMU in a lookalike namespace", dropped: "foreign:commandline",
			doc: domain{attrs: `xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0/"`, bottom: `<qemu:commandline><qemu:arg value="/etc/canary"/></qemu:commandline>`}.String()},
		{name: "QEMU properties", dropped: "qemu:override",
			doc: domain{attrs: ns("q"), bottom: `<q:override><q:device alias="disk0"><q:frontend><q:property name="x" type="string" value="/etc/canary"/></q:frontend></q:device></q:override>`}.String()},
		{name: "QEMU capabilities", doc: domain{attrs: ns("q"), bottom: `<q:capabilities><q:add capability="canary"/></q:capabilities>`}.String(), dropped: "qemu:capabilities"},
		{name: "elements in a foreign namespace", dropped: "devices/foreign:disk",
			doc: domain{attrs: `xmlns:x="http://canary.example/"`, devices: `<x:disk type="block"><x:source dev="/etc/canary"/><x:target dev="vdb"/></x:disk>`}.String()},
		{name: "metadata", doc: domain{top: `<metadata><x xmlns="http://canary.example/">canary</x></metadata>`}.String(), dropped: "silently"},
		{name: "name, title and description", doc: domain{top: `<title>canary</title><description>canary</description><uuid>canary</uuid>`}.String(), dropped: "silently"},
		{name: "security label", doc: domain{bottom: `<seclabel type="static" model="dac" relabel="no"><label>canary:canary</label></seclabel>`}.String(), dropped: "silently"},
		{name: "resource partition", doc: domain{top: `<resource><partition>/canary</partition></resource>`}.String(), dropped: "resource"},
		{name: "huge pages", doc: domain{top: `<memoryBacking><hugepages><page size="1" unit="G"/></hugepages><locked/><source type="file"/></memoryBacking>`}.String(), dropped: "memoryBacking"},
		{name: "pinning", doc: domain{top: `<cputune><emulatorpin cpuset="0"/></cputune><numatune><memory mode="strict" nodeset="0"/></numatune><iothreads>canary</iothreads>`}.String(), dropped: "cputune"},
		{name: "pinned vCPUs", doc: domain{vcpu: `<vcpu placement="auto" cpuset="0-63">1</vcpu>`}.String(), dropped: "vcpu/@cpuset"},
		{name: "100000 vCPUs", doc: domain{vcpu: `<vcpu>100000</vcpu>`}.String(), refused: "vcpu"},
		{name: "no vCPU", doc: domain{vcpu: `<vcpu>0</vcpu>`}.String(), refused: "vcpu"},
		{name: "vCPUs beyond 64 bits", doc: domain{vcpu: `<vcpu>18446744073709551617</vcpu>`}.String(), whole: true},
		{name: "topology that overflows", dropped: "cpu/topology",
			doc: domain{top: `<cpu><topology sockets="65536" dies="65536" cores="65536" threads="65536"/></cpu>`}.String()},
		{name: "memory of 2^63", doc: domain{memory: `<memory unit="b">9223372036854775808</memory>`}.String(), refused: "memory"},
		{name: "memory that overflows", doc: domain{memory: `<memory unit="TiB">16777217</memory>`}.String(), refused: "memory"},
		{name: "memory in an unknown unit", doc: domain{memory: `<memory unit="canary">1</memory>`}.String(), refused: "memory/@unit"},
		{name: "hot-plugged memory", doc: domain{top: `<maxMemory slots="4096" unit="TiB">4096</maxMemory>`}.String(), dropped: "maxMemory"},
		{name: "machine with an option", doc: domain{osType: `<type arch="x86_64" machine="q35,kernel=/etc/canary">hvm</type>`}.String(), refused: "os/type/@machine"},
		{name: "unknown architecture", doc: domain{osType: `<type arch="canary">hvm</type>`}.String(), refused: "os/type/@arch"},
		{name: "CPU model with an option", doc: domain{top: `<cpu mode="custom"><model>qemu64,canary=on</model></cpu>`}.String(), refused: "cpu/model"},
		{name: "CPU vendor with an option", doc: domain{top: `<cpu mode="host-model"><model vendor_id="a,canary=on"/></cpu>`}.String(), dropped: "cpu/model/@vendor_id"},
		{name: "CPU feature with an option", doc: domain{top: `<cpu mode="host-model"><feature policy="require" name="x,canary=on"/></cpu>`}.String(), dropped: "cpu/feature"},
		{name: "Hyper-V vendor with an option", doc: domain{top: `<features><hyperv><vendor_id state="on" value="a,canary=on"/></hyperv></features>`}.String(), dropped: "features/hyperv/vendor_id"},
		{name: "translation cache of the host's memory", doc: domain{top: `<features><tcg><tb-cache unit="GiB">1024</tb-cache></tcg></features>`}.String(), dropped: "features/tcg"},
		{name: "time zone as a path", doc: domain{top: `<clock offset="timezone" timezone="../../../etc/canary"/>`}.String(), dropped: "clock/@timezone"},
		{name: "dump on crash", doc: domain{top: `<on_crash>coredump-restart</on_crash>`}.String(), dropped: "on_crash (destroy instead of coredump-restart)"},
		{name: "restart loop", doc: domain{top: `<on_poweroff>restart</on_poweroff>`}.String(), dropped: "on_poweroff (destroy instead of restart)"},
		{name: "unknown action", doc: domain{top: `<on_crash>canary</on_crash>`}.String(), dropped: "on_crash (destroy instead of an unknown action)"},
		{name: "SMBIOS strings", doc: domain{top: `<sysinfo type="smbios"><system><entry name="serial">canary</entry></system></sysinfo>`}.String(), dropped: "sysinfo"},
		{name: "firmware configuration from a file", doc: domain{top: `<sysinfo type="fwcfg"><entry name="opt/x" file="/etc/canary"/></sysinfo>`}.String(), dropped: "sysinfo"},
		{name: "launch security", doc: domain{top: `<launchSecurity type="sev"><policy>1</policy><dhCert>canary</dhCert></launchSecurity>`}.String(), dropped: "launchSecurity"},
		{name: "identity map", doc: domain{top: `<idmap><uid start="0" target="0" count="10"/></idmap>`}.String(), dropped: "idmap"},
		{name: "throttle groups", doc: domain{top: `<throttlegroups><throttlegroup><group_name>canary</group_name></throttlegroup></throttlegroups>`}.String(), dropped: "throttlegroups"},
	}
}

// hostileDisks attack through disks.
func hostileDisks() []hostile {
	second := func(s string) string { return domain{devices: s}.String() }
	const where = "devices/disk[2]/source"
	return []hostile{
		{name: "host file as a disk", doc: second(`<disk type="file"><source file="/etc/canary"/><target dev="vdb"/></disk>`), refused: where},
		{name: "relative path out of the image", doc: second(`<disk type="file"><source file="../../etc/canary"/><target dev="vdb"/></disk>`), refused: where},
		{name: "device node", doc: second(`<disk type="block"><source dev="/dev/canary"/><target dev="vdb"/></disk>`), refused: where},
		{name: "layer as a device node", doc: second(`<disk type="block"><source dev="data.img" file="data.img"/><target dev="vdb"/></disk>`), refused: where},
		{name: "directory", doc: second(`<disk type="dir"><source dir="/etc/canary"/><target dev="vdb"/></disk>`), refused: where},
		{name: "network disk", doc: second(`<disk type="network"><source protocol="nbd" name="x"><host name="canary.example" port="10809"/></source><target dev="vdb"/></disk>`), refused: where},
		{name: "HTTP disk", doc: second(`<disk type="network" device="cdrom"><source protocol="http" name="/x.iso" query="canary"><host name="canary.example" port="80"/><cookies><cookie name="canary">x</cookie></cookies></source><target dev="sdb"/></disk>`), dropped: "devices/disk/source (1 of 2)"},
		{name: "RBD disk with a secret", doc: second(`<disk type="network"><auth username="canary"><secret type="ceph" usage="canary"/></auth><source protocol="rbd" name="x"><config file="/etc/canary"/></source><target dev="vdb"/></disk>`), refused: where},
		{name: "SSH disk with a key of the host", doc: second(`<disk type="network"><source protocol="ssh" name="x"><identity keyfile="/etc/canary"/><knownHosts path="/etc/canary"/></source><target dev="vdb"/></disk>`), refused: where},
		{name: "volume of a pool", doc: second(`<disk type="volume"><source pool="canary" volume="canary"/><target dev="vdb"/></disk>`), refused: where},
		{name: "NVMe of the host", doc: second(`<disk type="nvme"><source type="pci" managed="yes" namespace="1"><address domain="0x0000" bus="0x01" slot="0x00" function="0x0"/></source><target dev="vdb"/></disk>`), refused: where},
		{name: "vhost-user disk", doc: second(`<disk type="vhostuser"><source type="unix" path="/etc/canary"/><target dev="vdb"/></disk>`), refused: where},
		{name: "vhost-vdpa disk", doc: second(`<disk type="vhostvdpa"><source dev="/dev/canary"/><target dev="vdb"/></disk>`), refused: where},
		{name: "unknown type of disk", doc: second(`<disk type="canary"><source file="data.img"/><target dev="vdb"/></disk>`), refused: "devices/disk/@type"},
		{name: "disk without source", doc: second(`<disk type="file"><target dev="vdb"/></disk>`), refused: where},
		{name: "raw SCSI", doc: second(`<disk type="block" device="lun" rawio="yes" sgio="unfiltered"><source dev="/dev/canary"/><target dev="sdb"/></disk>`), refused: "devices/disk[2]/@device"},
		{name: "host file as a CD-ROM", doc: second(`<disk type="file" device="cdrom"><source file="/etc/canary"/><target dev="sdb" bus="sata"/></disk>`), dropped: "devices/disk/source (1 of 2)"},
		{name: "device node as a CD-ROM", doc: second(`<disk type="block" device="cdrom"><source dev="/dev/canary"/><target dev="sdb" bus="sata"/></disk>`), dropped: "devices/disk/source (1 of 2)"},
		{name: "host file as a floppy", doc: second(`<disk type="file" device="floppy"><source file="/etc/canary"/><target dev="fda" bus="fdc"/></disk>`), dropped: "devices/disk/source (1 of 2)"},
		{name: "path to a layer's name", dropped: "silently",
			doc: domain{disk: `<disk type="file"><source file="/etc/canary/disk.qcow2"/><target dev="vda"/></disk>`}.String()},
		{name: "one layer twice", doc: second(ordinaryDisk), refused: where},
		{name: "backing store", dropped: "silently",
			doc: second(`<disk type="file"><source file="data.img"/><backingStore type="file"><format type="raw"/><source file="/etc/canary"/><backingStore type="network"><format type="raw"/><source protocol="nbd" name="canary"><host name="canary.example"/></source></backingStore></backingStore><target dev="vdb"/></disk>`)},
		{name: "mirror", dropped: "devices/disk/mirror",
			doc: second(`<disk type="file"><source file="data.img"/><mirror type="file" job="copy"><format type="raw"/><source file="/etc/canary"/></mirror><target dev="vdb"/></disk>`)},
		{name: "external data file", refused: "devices/disk[2]/source/dataStore",
			doc: second(`<disk type="file"><source file="data.img"><dataStore type="file"><format type="raw"/><source file="/etc/canary"/></dataStore></source><target dev="vdb"/></disk>`)},
		{name: "slice", refused: "devices/disk[2]/source/slices",
			doc: second(`<disk type="file"><source file="data.img"><slices><slice type="storage" offset="1" size="1"/></slices></source><target dev="vdb"/></disk>`)},
		{name: "secret of the host", refused: "devices/disk[2]/source/encryption",
			doc: second(`<disk type="file"><source file="data.img"><encryption format="luks"><secret type="passphrase" usage="canary"/></encryption></source><target dev="vdb"/></disk>`)},
		{name: "secret of the host, old form", refused: "devices/disk[2]/encryption",
			doc: second(`<disk type="file"><source file="data.img"/><encryption format="qcow"><secret type="passphrase" uuid="canary"/></encryption><target dev="vdb"/></disk>`)},
		{name: "persistent reservations", dropped: "devices/disk/source/reservations",
			doc: second(`<disk type="file"><source file="data.img"><reservations managed="no"><source type="unix" path="/etc/canary" mode="client"/></reservations></source><target dev="vdb"/></disk>`)},
		{name: "file descriptor group", dropped: "devices/disk/source/@fdgroup",
			doc: second(`<disk type="file"><source file="data.img" fdgroup="canary"/><target dev="vdb"/></disk>`)},
		{name: "security label of a disk", dropped: "devices/disk/source/seclabel",
			doc: second(`<disk type="file"><source file="data.img"><seclabel model="dac" relabel="yes"><label>canary</label></seclabel></source><target dev="vdb"/></disk>`)},
		{name: "format that QEMU would follow", dropped: "silently",
			doc: second(`<disk type="file"><driver name="canary" type="vmdk" io="native" iothread="1"/><source file="data.img"/><target dev="vdb"/></disk>`)},
		{name: "target with a path", refused: "devices/disk[2]/target/@dev",
			doc: second(`<disk type="file"><source file="data.img"/><target dev="../canary"/></disk>`)},
		{name: "target far away", refused: "devices/disk[2]/target/@dev",
			doc: second(`<disk type="file"><source file="data.img"/><target dev="sdzzzz" bus="scsi"/></disk>`)},
		{name: "unknown bus", refused: "devices/disk[2]/target/@bus",
			doc: second(`<disk type="file"><source file="data.img"/><target dev="vdb" bus="canary"/></disk>`)},
		{name: "serial with an option", dropped: "devices/disk/serial",
			doc: second(`<disk type="file"><source file="data.img"/><target dev="vdb"/><serial>x,file=/etc/canary</serial></disk>`)},
		{name: "vendor with an option", dropped: "devices/disk/vendor",
			doc: second(`<disk type="file"><source file="data.img"/><target dev="sdb" bus="scsi"/><vendor>canary,x</vendor><product>/etc/canary</product></disk>`)},
		{name: "controllers without end", refused: "devices/disk[2]/address",
			doc: second(`<disk type="file"><source file="data.img"/><target dev="sdb" bus="scsi"/><address type="drive" controller="4294967295" bus="0" target="0" unit="0"/></disk>`)},
		{name: "10000 disks", doc: second(strings.Repeat(`<disk><target/></disk>`, 5000)), refused: "devices/disk"},
	}
}

// hostileNICs attack through network cards.
func hostileNICs() []hostile {
	nic := func(s string) string { return domain{devices: s}.String() }
	return []hostile{
		{name: "script", dropped: "devices/interface/script",
			doc: nic(`<interface type="ethernet"><script path="/etc/canary"/><downscript path="/etc/canary"/><target dev="canary0" managed="no"/></interface>`)},
		{name: "bridge of the host", doc: nic(`<interface type="bridge"><source bridge="canary"/></interface>`), dropped: "silently"},
		{name: "network of the host", doc: nic(`<interface type="network"><source network="canary" portgroup="canary"/></interface>`), dropped: "silently"},
		{name: "interface of the host", doc: nic(`<interface type="direct" trustGuestRxFilters="yes"><source dev="canary0" mode="passthrough"/></interface>`), dropped: "devices/interface/@trustGuestRxFilters"},
		{name: "connection to a host", doc: nic(`<interface type="client"><source address="canary.example" port="5558"/></interface>`), dropped: "silently"},
		{name: "vhost-user socket", doc: nic(`<interface type="vhostuser"><source type="unix" path="/etc/canary" mode="client"/></interface>`), dropped: "silently"},
		{name: "vDPA device", doc: nic(`<interface type="vdpa"><source dev="/dev/canary"/></interface>`), dropped: "silently"},
		{name: "virtual function of the host", doc: nic(`<interface type="hostdev" managed="yes"><source><address type="pci" domain="0x0000" bus="0x3b" slot="0x02" function="0x0"/></source></interface>`), dropped: "devices/interface/@managed"},
		{name: "forwarded port", doc: nic(`<interface type="user"><backend type="passt" logFile="/etc/canary"/><portForward proto="tcp" address="0.0.0.0"><range start="22"/></portForward></interface>`), dropped: "devices/interface/portForward"},
		{name: "tap and vhost device", doc: nic(`<interface type="user"><backend tap="/dev/canary" vhost="/dev/canary"/></interface>`), dropped: "devices/interface/backend"},
		{name: "option ROM from a file", doc: nic(`<interface type="user"><rom bar="on" file="/etc/canary"/></interface>`), dropped: "devices/interface/rom/@file"},
		{name: "device as a model", doc: nic(`<interface type="user"><model type="vfio-pci"/></interface>`), refused: "devices/interface[1]/model"},
		{name: "model with an option", doc: nic(`<interface type="user"><model type="virtio,romfile=/etc/canary"/></interface>`), refused: "devices/interface[1]/model"},
		{name: "filter of the host", doc: nic(`<interface type="user"><filterref filter="canary"><parameter name="IP" value="canary"/></filterref></interface>`), dropped: "devices/interface/filterref"},
		{name: "MTU of the bridge", doc: nic(`<interface type="user"><mtu size="68"/></interface>`), dropped: "devices/interface/mtu"},
		{name: "VLAN and virtual port", doc: nic(`<interface type="bridge"><source bridge="canary"/><vlan><tag id="1"/></vlan><virtualport type="openvswitch"><parameters profileid="canary"/></virtualport></interface>`), dropped: "devices/interface/vlan"},
		{name: "address on the host", doc: nic(`<interface type="ethernet"><source><ip address="192.0.2.1" family="ipv4"/></source><ip address="192.0.2.2"/><route address="0.0.0.0" gateway="192.0.2.3"/></interface>`), dropped: "devices/interface/ip"},
		{name: "MAC address", doc: nic(`<interface type="user"><mac address="52:54:00:ca:na:ry"/></interface>`), dropped: "silently"},
		{name: "unknown type of network", doc: nic(`<interface type="canary"><source canary="canary"/></interface>`), refused: "devices/interface/@type"},
		{name: "100 network cards", doc: nic(strings.Repeat(`<interface type="user"/>`, 100)), refused: "devices/interface"},
	}
}

// hostileDevices attack through all other devices.
func hostileDevices() []hostile {
	dev := func(s string) string { return domain{devices: s}.String() }
	return []hostile{
		{name: "emulator", doc: dev(`<emulator>/etc/canary</emulator>`), dropped: "silently"},
		{name: "PCI device of the host", doc: dev(`<hostdev mode="subsystem" type="pci" managed="yes"><source><address domain="0" bus="0" slot="2" function="0"/></source></hostdev>`), dropped: "devices/hostdev"},
		{name: "block device of a container", doc: dev(`<hostdev mode="capabilities" type="storage"><source><block>/dev/canary</block></source></hostdev>`), dropped: "devices/hostdev"},
		{name: "directory of the host", doc: dev(`<filesystem type="mount"><source dir="/etc/canary"/><target dir="x"/></filesystem>`), dropped: "devices/filesystem"},
		{name: "virtiofsd", doc: dev(`<filesystem type="mount"><driver type="virtiofs"/><binary path="/etc/canary"/><source socket="/etc/canary"/><target dir="x"/></filesystem>`), dropped: "devices/filesystem"},
		{name: "serial port to a file", doc: dev(`<serial type="file"><source path="/etc/canary"/><target port="0"/></serial>`), dropped: "silently"},
		{name: "serial port to a device", doc: dev(`<serial type="dev"><source path="/dev/canary"/></serial>`), dropped: "silently"},
		{name: "serial port to a socket", doc: dev(`<serial type="unix"><source mode="connect" path="/etc/canary"/></serial>`), dropped: "silently"},
		{name: "serial port to the network", doc: dev(`<serial type="tcp"><source mode="connect" host="canary.example" service="22"/><protocol type="raw"/></serial>`), dropped: "devices/serial/protocol"},
		{name: "serial port to UDP", doc: dev(`<serial type="udp"><source mode="connect" host="canary.example" service="53"/></serial>`), dropped: "silently"},
		{name: "serial port to a pipe", doc: dev(`<serial type="pipe"><source path="/etc/canary"/></serial>`), dropped: "silently"},
		{name: "serial port with a log", doc: dev(`<serial type="pty"><log file="/etc/canary" append="on"/></serial>`), dropped: "devices/serial/log"},
		{name: "console to a file", doc: dev(`<console type="file"><source path="/etc/canary"/><log file="/etc/canary"/><target type="virtio"/></console>`), dropped: "devices/console/log"},
		{name: "terminal of the host", doc: dev(`<console type="pty" tty="/dev/canary"><source path="/dev/canary"/></console>`), dropped: "silently"},
		{name: "serial port of an unknown type", doc: dev(`<serial type="canary"><source path="/etc/canary"/></serial>`), refused: "devices/serial/@type"},
		{name: "address of an unknown type", doc: dev(`<watchdog model="i6300esb"><address type="canary" x="/etc/canary"/></watchdog>`), refused: "devices/watchdog/address/@type"},
		{name: "terminal sequence in a value", doc: dev(`<serial type="&#27;[2Jcanary"/>`), whole: true},
		{name: "line break in a value", doc: dev(`<serial type="x&#10;section_end:1:canary"/>`), refused: "devices/serial/@type"},
		{name: "device that the parser cannot read", doc: dev(`<hostdev mode="canary"/><filesystem type="canary"><driver queue="canary"/></filesystem><shmem name="x"><size>canary</size></shmem>`), dropped: "devices/hostdev"},
		{name: "parallel port", doc: dev(`<parallel type="file"><source path="/etc/canary"/></parallel>`), dropped: "devices/parallel"},
		{name: "channel to a socket", doc: dev(`<channel type="unix"><source mode="connect" path="/etc/canary"/><target type="virtio" name="canary.0"/></channel>`), dropped: "devices/channel"},
		{name: "guest agent on a socket of the host", doc: dev(`<channel type="unix"><source mode="connect" path="/etc/canary"/><target type="virtio" name="org.qemu.guest_agent.0"/></channel>`), dropped: "silently"},
		{name: "guest agent in a file", doc: dev(`<channel type="file"><source path="/etc/canary"/><target type="virtio" name="org.qemu.guest_agent.0"/><log file="/etc/canary"/></channel>`), dropped: "devices/channel/log"},
		{name: "forwarding from the guest", doc: dev(`<channel type="tcp"><source mode="connect" host="canary.example" service="80"/><target type="guestfwd" address="10.0.2.1" port="80"/></channel>`), dropped: "devices/channel"},
		{name: "randomness from a file", doc: dev(`<rng model="virtio"><backend model="random">/etc/canary</backend></rng>`), dropped: "devices/rng[1]/backend (/dev/urandom instead of another source)"},
		{name: "randomness from the network", doc: dev(`<rng model="virtio"><backend model="egd" type="tcp"><source mode="connect" host="canary.example" service="80"/></backend></rng>`), dropped: "devices/rng[1]/backend (/dev/urandom instead of another source)"},
		{name: "TPM of the host", doc: dev(`<tpm model="tpm-tis"><backend type="passthrough"><device path="/dev/canary"/></backend></tpm>`), dropped: "devices/tpm[1]/backend (emulator instead of another backend)"},
		{name: "TPM on a socket", doc: dev(`<tpm><backend type="external"><source type="unix" mode="connect" path="/etc/canary"/></backend></tpm>`), dropped: "devices/tpm[1]/backend (emulator instead of another backend)"},
		{name: "TPM state in a file", doc: dev(`<tpm><backend type="emulator" version="2.0" debug="100"><source type="file" path="/etc/canary"/><profile source="canary"/><encryption secret="canary"/></backend></tpm>`), dropped: "devices/tpm/backend/source"},
		{name: "keyboard of the host", doc: dev(`<input type="passthrough" bus="virtio"><source evdev="/dev/canary"/></input><input type="evdev"><source dev="/dev/canary"/></input>`), dropped: "devices/input"},
		{name: "open VNC", doc: dev(`<graphics type="vnc" port="5900" listen="0.0.0.0" socket="/etc/canary" passwd="canary"/>`), dropped: "devices/graphics"},
		{name: "rendering on the host", doc: dev(`<graphics type="egl-headless"><gl rendernode="/dev/canary"/></graphics><video><model type="virtio"><acceleration accel3d="yes" rendernode="/dev/canary"/></model></video>`), dropped: "devices/video/model/acceleration"},
		{name: "vhost-user GPU", doc: dev(`<video><driver name="vhostuser"/><model type="virtio" blob="on"/></video>`), dropped: "devices/video/driver"},
		{name: "video memory of the host", doc: dev(`<video><model type="vga" vram="4294967295"/></video>`), dropped: "devices/video/model/@vram"},
		{name: "unknown video card", doc: dev(`<video><model type="canary"/></video>`), dropped: "devices/video"},
		{name: "sound into a file", doc: dev(`<sound model="ich9"/><audio id="1" type="file" path="/etc/canary"/>`), dropped: "devices/audio/@path"},
		{name: "sound to a server", doc: dev(`<sound model="ich9"/><audio id="1" type="pulseaudio" serverName="canary.example"/>`), dropped: "devices/audio/@serverName"},
		{name: "smartcard", doc: dev(`<smartcard mode="host-certificates"><certificate>canary</certificate><certificate>canary</certificate><certificate>canary</certificate><database>/etc/canary</database></smartcard>`), dropped: "devices/smartcard"},
		{name: "USB over the network", doc: dev(`<redirdev bus="usb" type="tcp"><source mode="connect" host="canary.example" service="4000"/></redirdev>`), dropped: "devices/redirdev"},
		{name: "shared memory", doc: dev(`<shmem name="canary"><model type="ivshmem-doorbell"/><server path="/etc/canary"/></shmem>`), dropped: "devices/shmem"},
		{name: "socket to the host", doc: dev(`<vsock model="virtio"><cid auto="no" address="3"/></vsock>`), dropped: "devices/vsock"},
		{name: "persistent memory", doc: dev(`<memory model="nvdimm"><source><path>/etc/canary</path></source><target><size unit="MiB">1</size></target></memory>`), refused: "devices/memory[1]"},
		{name: "memory from a file", doc: dev(`<memory model="dimm"><source><nodemask>0</nodemask><path>/etc/canary</path></source><target><size unit="GiB">1</size></target></memory>`), dropped: "devices/memory"},
		{name: "dump by the watchdog", doc: dev(`<watchdog model="i6300esb" action="dump"/>`), dropped: "devices/watchdog[1]/@action (reset instead of another action)"},
		{name: "lease", doc: dev(`<lease><lockspace>canary</lockspace><key>canary</key><target path="/etc/canary"/></lease>`), dropped: "devices/lease"},
		{name: "crypto device", doc: dev(`<crypto model="virtio" type="qemu"><backend model="lkcf" queues="1"/></crypto>`), dropped: "devices/crypto"},
		{name: "crash records in a file", doc: dev(`<pstore backend="acpi-erst"><path>/etc/canary</path><size unit="KiB">8</size></pstore>`), dropped: "devices/pstore"},
		{name: "unknown device", doc: dev(`<canary path="/etc/canary"/>`), dropped: "devices/canary"},
		{name: "alias", doc: domain{disk: strings.Replace(ordinaryDisk, "</disk>", `<alias name="ua-canary"/></disk>`, 1)}.String(), dropped: "silently"},
		{name: "unknown controller", doc: dev(`<controller type="canary"/>`), refused: "devices/controller[1]/@type"},
		{name: "unknown model of a controller", doc: dev(`<controller type="scsi" model="canary"/>`), refused: "devices/controller[1]/@model"},
		{name: "unknown PCI device", doc: dev(`<controller type="pci" index="1" model="pcie-root-port"><model name="vfio-pci"/></controller>`), refused: "devices/controller[1]/model"},
		{name: "controller index", doc: dev(`<controller type="usb" index="4294967295"/>`), refused: "devices/controller[1]/@index"},
		{name: "PCI bus beyond the last", refused: "devices/watchdog[1]/address",
			doc: dev(`<watchdog model="i6300esb"><address type="pci" domain="0" bus="256" slot="0" function="0"/></watchdog>`)},
		{name: "USB port as a path", doc: dev(`<input type="tablet" bus="usb"><address type="usb" bus="0" port="/etc/canary"/></input>`), refused: "devices/input[1]/address/@port"},
		{name: "10000 devices", doc: dev(strings.Repeat(`<controller type="usb"/>`, 10_000)), refused: "devices/controller"},
	}
}

// TestHugeDocument: a document that is too large is not parsed.
func TestHugeDocument(t *testing.T) {
	doc := []byte(`<domain type="qemu"><name>` + strings.Repeat("x", 4<<20) + `</name></domain>`)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := domainxml.Rebuild(doc, domainxml.Options{Disks: layers})
	runtime.ReadMemStats(&after)
	wantRefused(t, err, "")
	if used := after.TotalAlloc - before.TotalAlloc; used > 64<<10 {
		t.Errorf("%d bytes were allocated to refuse a document of 4 MiB", used)
	}
}

// TestWorstDocument measures the most expensive document within the limits.
func TestWorstDocument(t *testing.T) {
	for name, fill := range map[string]string{
		"elements":   strings.Repeat("<a b='c'/>", 19_000),
		"attributes": strings.Repeat(`<a `+strings.TrimPrefix(manyAttributes(), `="" `)[:300]+`"/>`, 1000),
		"text":       strings.Repeat("<a>"+strings.Repeat("x", 60<<10)+"</a>", 16),
	} {
		doc := []byte(domain{devices: fill}.String())
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := domainxml.Rebuild(doc, domainxml.Options{Disks: layers})
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > 64<<20 {
			t.Errorf("%s: %d bytes were allocated for a document of %d (%v)", name, used, len(doc), err)
		}
	}
}
