package admin

import (
	"encoding/xml"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/oci"
)

// firmwareOf says by which firmware the machines of an image boot. stored is nil if the image
// is not in the store: then only its domain XML or the settings show it.
func firmwareOf(stored *oci.Image, i *oci.Inspection, resolved config.Resolved) string {
	doc := i.DomainXML
	if stored != nil {
		built, _, err := preview(stored, resolved)
		if err != nil {
			return "unknown: " + err.Error()
		}
		doc = []byte(built)
	}
	switch {
	case stored == nil && resolved.Domain != "":
		return "that of the template " + resolved.Domain
	case stored == nil && resolved.Firmware != "auto":
		return resolved.Firmware + " (setting firmware)"
	case doc == nil && oci.Architecture(i.Architecture) == "arm64":
		return "uefi"
	case doc == nil:
		return "unknown until the image is pulled: its disk decides"
	}
	return firmwareIn(doc)
}

// firmwareIn reads the firmware from domain XML.
func firmwareIn(doc []byte) string {
	var domain struct {
		OS struct {
			Firmware string `xml:"firmware,attr"`
			Loader   struct {
				Type   string `xml:"type,attr"`
				Secure string `xml:"secure,attr"`
			} `xml:"loader"`
			Features []struct {
				Name    string `xml:"name,attr"`
				Enabled string `xml:"enabled,attr"`
			} `xml:"firmware>feature"`
		} `xml:"os"`
	}
	if err := xml.Unmarshal(doc, &domain); err != nil {
		return "unknown: the domain XML is not valid"
	}
	if domain.OS.Firmware != "efi" && domain.OS.Loader.Type != "pflash" {
		return "bios"
	}
	secure := domain.OS.Loader.Secure == "yes"
	for _, f := range domain.OS.Features {
		secure = secure || f.Name == "secure-boot" && f.Enabled == "yes"
	}
	if secure {
		return "uefi-secure"
	}
	return "uefi"
}
