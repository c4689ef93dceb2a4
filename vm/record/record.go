package record

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"strings"
	"time"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/virt"
)

// Namespace is the XML namespace of a [Record] in a domain's metadata. A
// domain that has none is not ours, whatever its name.
const Namespace = "urn:gitlab-sardine-executor:job:1"

const prefix = "sardine"

// ErrNotOurs: the domain carries no record of a job. Nothing of this package
// changes such a domain.
var ErrNotOurs = errors.New("not a machine of a job")

// A Record is what every later stage and command has to know of a machine. It
// lives in the metadata of its domain and holds no secret.
type Record struct {
	// Job, Project and Server say whose machine it is: GitLab's job id, the
	// path of the project, the URL of the server.
	Job     string `xml:"id" json:"job"`
	Project string `xml:"project,omitempty" json:"project,omitempty"`
	Server  string `xml:"server,omitempty" json:"server,omitempty"`
	// Image and Digest say what it was made of.
	Image  string `xml:"image,omitempty" json:"image,omitempty"`
	Digest string `xml:"digest,omitempty" json:"digest,omitempty"`
	// Cache is the name of the cache that the machine has; empty for none.
	Cache string `xml:"cache,omitempty" json:"cache,omitempty"`
	// Created is when prepare began; from Expires on nobody needs it any more.
	Created time.Time `xml:"created" json:"created"`
	Expires time.Time `xml:"expires" json:"expires"`

	// MAC is the MAC address of the machine's NIC on a libvirt network; if it has
	// several, they are separated by spaces. Address is host:port of the guest's SSH
	// server as seen from this host,
	// HostKey its public key (a line as in known_hosts, without the host), and
	// User who logs in. All are empty until the guest answered.
	MAC     string `xml:"mac,omitempty" json:"mac,omitempty"`
	Address string `xml:"address,omitempty" json:"address,omitempty"`
	HostKey string `xml:"hostkey,omitempty" json:"hostKey,omitempty"`
	User    string `xml:"user,omitempty" json:"user,omitempty"`
}

// element is the record as XML. libvirt declares the namespace itself when it
// is handed metadata through its API; in a domain's XML we must.
func (r Record) element(name xml.Name, attrs ...xml.Attr) (string, error) {
	var text strings.Builder
	if err := xml.NewEncoder(&text).EncodeElement(r, xml.StartElement{Name: name, Attr: attrs}); err != nil {
		return "", fmt.Errorf("write the record of job %s: %w", r.Job, err)
	}
	return text.String(), nil
}

// Metadata is the record as a child of a domain's <metadata>.
func (r Record) Metadata() (*libvirtxml.DomainMetadata, error) {
	text, err := r.element(xml.Name{Local: prefix + ":job"},
		xml.Attr{Name: xml.Name{Local: "xmlns:" + prefix}, Value: Namespace})
	if err != nil {
		return nil, err
	}
	return &libvirtxml.DomainMetadata{XML: text}, nil
}

// Store replaces the record of a running domain.
func (r Record) Store(ctx context.Context, dom *virt.Domain) error {
	text, err := r.element(xml.Name{Local: "job"})
	if err != nil {
		return err
	}
	return dom.SetMetadata(ctx, "the job's record", text, prefix, Namespace)
}

// Read reads the record of a domain; the error is [ErrNotOurs] if it has
// none, or is one that libvirt keeps a definition of: machines of jobs are transient.
func Read(ctx context.Context, dom *virt.Domain) (Record, error) {
	defined, err := dom.IsPersistent(ctx)
	if err != nil {
		return Record{}, err
	}
	if defined {
		return Record{}, fmt.Errorf("%w: it is a defined domain", ErrNotOurs)
	}
	text, err := dom.Metadata(ctx, "the job's record", Namespace)
	if errors.Is(err, virt.ErrNoMetadata) {
		return Record{}, ErrNotOurs
	}
	if err != nil {
		return Record{}, err
	}
	var r Record
	if err := xml.Unmarshal([]byte(text), &r); err != nil {
		return Record{}, fmt.Errorf("%w: its record is damaged: %w", ErrNotOurs, err)
	}
	return r, nil
}
