package record

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"strings"
	"time"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/virt"
)

// Namespace is the XML namespace of a [Record] in the metadata of a domain. A domain
// without it is not a job's, whatever its name.
const Namespace = "urn:gitlab-sardine-executor:job:1"

const prefix = "sardine"

// A Record is what later stages and commands need to know about a machine. It is stored in
// the metadata of the domain and contains no secrets.
type Record struct {
	// Job, Project and Server identify the job: GitLab's job ID, the path of the project,
	// the URL of the server.
	Job     string `xml:"id" json:"job"`
	Project string `xml:"project,omitempty" json:"project,omitempty"`
	Server  string `xml:"server,omitempty" json:"server,omitempty"`
	// Machine is the name by which the stages of the job know the machine, if that is not the
	// name of the domain: the job has taken an idle machine.
	Machine string `xml:"machine,omitempty" json:"machine,omitempty"`
	// Idle: the machine waits for a job. It has no Job, Project and Server.
	Idle bool `xml:"idle,omitempty" json:"idle,omitempty"`
	// Image and Digest identify the image of the machine.
	Image  string `xml:"image,omitempty" json:"image,omitempty"`
	Digest string `xml:"digest,omitempty" json:"digest,omitempty"`
	// Cache is the name of the machine's cache; empty for none.
	Cache string `xml:"cache,omitempty" json:"cache,omitempty"`
	// Created is when prepare began. From Expires on, sweep may remove the machine.
	Created time.Time `xml:"created" json:"created"`
	Expires time.Time `xml:"expires" json:"expires"`

	// MAC is the MAC address of the machine's NIC on a libvirt network. Several are
	// separated by spaces.
	MAC string `xml:"mac,omitempty" json:"mac,omitempty"`
	// Address is host:port of the guest's SSH server as seen from this host, HostKey its
	// public key (a line as in known_hosts, without the host), and User the user of the
	// login. Address and User are empty until the guest is ready.
	Address string `xml:"address,omitempty" json:"address,omitempty"`
	HostKey string `xml:"hostkey,omitempty" json:"hostKey,omitempty"`
	User    string `xml:"user,omitempty" json:"user,omitempty"`
}

// element returns the record as XML. libvirt declares the namespace of metadata that is set
// through its API; in the XML of a domain it must be declared.
func (r Record) element(name xml.Name, attrs ...xml.Attr) (string, error) {
	var text strings.Builder
	if err := xml.NewEncoder(&text).EncodeElement(r, xml.StartElement{Name: name, Attr: attrs}); err != nil {
		return "", fmt.Errorf("write the record of job %s: %w", r.Job, err)
	}
	return text.String(), nil
}

// Metadata returns the record as a child of <metadata>.
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

// Read reads the record of a domain. The error is [errdefs.ErrNotOurs] if it has none, or if it is a
// defined domain: machines of jobs are transient.
func Read(ctx context.Context, dom *virt.Domain) (Record, error) {
	defined, err := dom.IsPersistent(ctx)
	if err != nil {
		return Record{}, err
	}
	if defined {
		return Record{}, fmt.Errorf("%w: it is a defined domain", errdefs.ErrNotOurs)
	}
	text, err := dom.Metadata(ctx, "the job's record", Namespace)
	if errors.Is(err, virt.ErrNoMetadata) {
		return Record{}, errdefs.ErrNotOurs
	}
	if err != nil {
		return Record{}, err
	}
	var r Record
	if err := xml.Unmarshal([]byte(text), &r); err != nil {
		return Record{}, fmt.Errorf("%w: its record is damaged: %w", errdefs.ErrNotOurs, err)
	}
	return r, nil
}
