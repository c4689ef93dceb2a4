package domain

import (
	"fmt"
	"path/filepath"
	"slices"

	"libvirt.org/go/libvirtxml"
)

const (
	// socketPathMax is the maximum length of a socket path on Linux (sockaddr_un.sun_path).
	socketPathMax = 107
	// shortName is how much of the name of a domain is in such paths
	// (virDomainDefGetShortName), and domainID an ID that is as long as they get.
	shortName = 20
	domainID  = "999999"
)

// DropLongChannels removes the channels of the machine of that name for which a libvirt daemon of a user would
// bind a socket with a path that is too long, and so not start the domain. It binds them
// below configHome, the user's configuration directory; /home/gitlab-runner/.config is too
// long already. Only machines on libvirt networks need such a channel, that of the guest
// agent. notes say what was removed.
func DropLongChannels(d *libvirtxml.Domain, name, configHome string) (notes []string) {
	if len(name) > shortName {
		name = name[:shortName]
	}
	dir := filepath.Join(configHome, "libvirt/qemu/channel/target", "domain-"+domainID+"-"+name)
	if d.Devices == nil {
		return nil
	}
	d.Devices.Channels = slices.DeleteFunc(d.Devices.Channels, func(c libvirtxml.DomainChannel) bool {
		if c.Source == nil || c.Source.UNIX == nil || c.Source.UNIX.Path != "" || c.Target == nil || c.Target.VirtIO == nil {
			return false
		}
		path := filepath.Join(dir, c.Target.VirtIO.Name)
		if len(path) <= socketPathMax {
			return false
		}
		notes = append(notes, fmt.Sprintf("no channel %s: the path of libvirt's socket for it would have %d bytes, more than %d: %s", c.Target.VirtIO.Name, len(path), socketPathMax, path))
		return true
	})
	return notes
}
