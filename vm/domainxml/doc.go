// Package domainxml turns the libvirt domain XML of an image, which anybody may
// have written, into a domain that can do no harm to the host.
package domainxml
