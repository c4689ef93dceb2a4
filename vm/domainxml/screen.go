package domainxml

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// Limits of a document, far above what libvirt writes.
const (
	maxDepth      = 100 // a long backing chain nests
	maxElements   = 20_000
	maxAttributes = 64 // of one element
	maxValue      = 64 << 10
)

// qemuNamespace is the additional namespace that libvirt's QEMU driver reads.
const qemuNamespace = "http://libvirt.org/schemas/domain/qemu/1.0"

// rebuiltElements are the children of <domain> that a rebuilder reads. Others in an untrusted
// document are not even parsed.
var rebuiltElements = set(
	"genid", "memory", "currentMemory", "vcpu", "os", "features", "cpu", "clock",
	"on_poweroff", "on_reboot", "on_crash", "pm", "devices",
)

// rebuiltDevices are the same for the children of <devices>.
var rebuiltDevices = set(
	"disk", "controller", "interface", "serial", "console", "channel", "input", "tpm",
	"sound", "audio", "video", "hub", "watchdog", "memballoon", "rng", "panic", "memory",
	"iommu",
)

// knownTypes are the types that libvirtxml supports. Its errors for others do not name the
// element.
var knownTypes = map[string]map[string]bool{
	"disk": set("file", "block", "dir", "network", "volume", "nvme", "vhostuser", "vhostvdpa"),
	"interface": set("user", "ethernet", "vhostuser", "server", "client", "mcast", "network", "bridge", "internal",
		"direct", "hostdev", "udp", "vdpa", "null", "vds"),
	"serial":  chardevTypes,
	"console": chardevTypes,
	"channel": chardevTypes,
	"address": set("pci", "drive", "virtio-serial", "ccid", "usb", "spapr-vio", "virtio-s390", "ccw", "virtio-mmio",
		"isa", "dimm", "unassigned"),
}

var chardevTypes = set("null", "vc", "pty", "dev", "file", "pipe", "stdio", "udp", "tcp", "unix", "spicevmc",
	"spiceport", "nmdm", "qemu-vdagent", "dbus")

func set(names ...string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, n := range names {
		m[n] = true
	}
	return m
}

// screened is a document that is safe to parse: well-formed, of limited size, without
// declarations, comments, namespaces and unused elements.
type screened struct {
	tokens    []xml.Token
	inventory *inventory // of the whole document, screened out or not
}

// screen reads a document into tokens. It keeps all elements of libvirt's and QEMU's namespaces
// of a trusted document.
func screen(doc []byte, trusted bool) (*screened, error) {
	if len(doc) > maxSize {
		return nil, refuse("", "it has %d bytes, at most %d are read", len(doc), maxSize)
	}
	sc := &screener{
		dec:     xml.NewDecoder(bytes.NewReader(doc)),
		trusted: trusted,
		out:     &screened{inventory: newInventory()},
	}
	for {
		tok, err := sc.dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, refuse("", "%v", err)
		}
		if err := sc.token(tok); err != nil {
			return nil, err
		}
	}
	if !sc.rootClosed {
		return nil, refuse("", "it has no <domain> element")
	}
	return sc.out, nil
}

// A screener holds the state of screen.
type screener struct {
	dec        *xml.Decoder
	trusted    bool
	out        *screened
	path       []string // below <domain>
	depth      int
	elements   int
	skipFrom   int // depth of the element whose whole content is left out; 0 if none
	rootClosed bool
}

func (s *screener) token(tok xml.Token) error {
	switch t := tok.(type) {
	case xml.Directive:
		return refuse("", "document type declarations and entities are not accepted")
	case xml.StartElement:
		return s.start(t)
	case xml.EndElement:
		s.end(t)
	case xml.CharData:
		return s.text(t)
	case xml.ProcInst, xml.Comment: // not part of the domain
	}
	return nil
}

func (s *screener) start(t xml.StartElement) error {
	if s.rootClosed {
		return refuse("", "there is a second root element after <domain>")
	}
	s.depth++
	s.elements++
	switch {
	case s.depth == 1 && t.Name != xml.Name{Local: "domain"}:
		return refuse("", "its root is not libvirt's <domain>")
	case s.depth > maxDepth:
		return refuse("", "elements nest deeper than %d", maxDepth)
	case s.elements > maxElements:
		return refuse("", "it has more than %d elements", maxElements)
	case len(t.Attr) > maxAttributes:
		return refuse(s.at(t.Name), "it has more than %d attributes", maxAttributes)
	}
	attrs, err := s.attributes(t)
	if err != nil {
		return err
	}
	if s.depth == 3 && s.path[0] == "qemu:commandline" && !s.trusted {
		return refuse("qemu:commandline", "only images that the administrator trusts (trusted = true) give QEMU arguments")
	}
	if s.depth > 1 {
		s.path = append(s.path, label(t.Name))
		s.out.inventory.add(strings.Join(s.path, "/"))
	}
	for _, a := range attrs {
		s.out.inventory.add(join(s.path, "@"+label(a.Name)))
	}
	if s.skipFrom == 0 && !s.wanted(t.Name) {
		s.skipFrom = s.depth
	}
	if s.skipFrom != 0 {
		return nil
	}
	s.out.tokens = append(s.out.tokens, xml.StartElement{Name: t.Name, Attr: attrs})
	return s.knownType(t.Name.Local, attrs)
}

// knownType refuses a device or address of a type that the parser cannot read.
func (s *screener) knownType(name string, attrs []xml.Attr) error {
	known := knownTypes[name]
	if known == nil || s.depth < 3 || s.path[0] != "devices" || (s.depth != 3 && name != "address") {
		return nil
	}
	for _, a := range attrs {
		if a.Name.Local == "type" && !known[a.Value] {
			return refuse(join(s.path, "@type"), "%q is no type of %s that is known here", text(a.Value), name)
		}
	}
	return nil
}

// attributes returns the attributes without a namespace and without declarations.
func (s *screener) attributes(t xml.StartElement) ([]xml.Attr, error) {
	var own []xml.Attr
	for _, a := range t.Attr {
		if len(a.Value) > maxValue {
			return nil, refuse(s.at(t.Name), "an attribute has more than %d bytes", maxValue)
		}
		if a.Name.Space != "" || a.Name.Local == "xmlns" {
			continue
		}
		for _, b := range own {
			if a.Name == b.Name {
				return nil, refuse(s.at(t.Name), "it has the attribute %.64s twice", a.Name.Local)
			}
		}
		own = append(own, a)
	}
	return own, nil
}

// wanted reports whether an element is passed to the parser. Below the elements that are
// selected by name, everything in libvirt's namespace is: the rebuilder decides.
func (s *screener) wanted(name xml.Name) bool {
	switch {
	case name.Space == qemuNamespace:
		return s.trusted
	case name.Space != "":
		return false
	case s.depth == 2:
		return (s.trusted && name.Local != "metadata") || rebuiltElements[name.Local]
	case s.depth == 3 && s.path[0] == "devices":
		return s.trusted || rebuiltDevices[name.Local]
	default:
		return true
	}
}

func (s *screener) end(t xml.EndElement) {
	if s.skipFrom == 0 {
		s.out.tokens = append(s.out.tokens, t)
	}
	if s.skipFrom == s.depth {
		s.skipFrom = 0
	}
	s.depth--
	if s.depth == 0 {
		s.rootClosed = true
		return
	}
	s.path = s.path[:len(s.path)-1]
}

func (s *screener) text(t xml.CharData) error {
	blank := len(bytes.TrimSpace(t)) == 0
	switch {
	case s.depth == 0 && !blank && !bytes.Equal(t, []byte("\ufeff")):
		return refuse("", "there is text outside of <domain>")
	case len(t) > maxValue:
		return refuse(strings.Join(s.path, "/"), "its text has more than %d bytes", maxValue)
	case s.depth == 0 || blank:
		return nil
	}
	s.out.inventory.add(join(s.path, "text()"))
	if s.skipFrom == 0 {
		s.out.tokens = append(s.out.tokens, t.Copy())
	}
	return nil
}

func (s *screener) at(name xml.Name) string {
	if s.depth == 1 {
		return ""
	}
	return join(s.path, label(name))
}

// decode parses a screened document. Errors of libvirtxml contain names and values; [refuse]
// limits their length.
func (s *screened) decode() (*libvirtxml.Domain, error) {
	d := &libvirtxml.Domain{}
	if err := xml.NewTokenDecoder(&tokenReader{s.tokens}).Decode(d); err != nil {
		return nil, refuse("", "%v", err)
	}
	return d, nil
}

type tokenReader struct{ rest []xml.Token }

func (r *tokenReader) Token() (xml.Token, error) {
	if len(r.rest) == 0 {
		return nil, io.EOF
	}
	t := r.rest[0]
	r.rest = r.rest[1:]
	return t, nil
}
