package domain

import (
	"strings"
	"testing"

	"libvirt.org/go/libvirtxml"
)

func TestDropLongChannels(t *testing.T) {
	for home, dropped := range map[string]bool{
		"/home/ci/.config":                            false,
		"/home/gitlab-runner/.config":                 true,
		"/" + strings.Repeat("long", 30) + "/.config": true,
	} {
		d := &libvirtxml.Domain{}
		if err := d.Unmarshal(`<domain type='kvm'><name>sardine-0123abcd-123456789</name><devices>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
<channel type='unix'><source mode='bind' path='/run/own'/><target type='virtio' name='own'/></channel>
<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel></devices></domain>`); err != nil {
			t.Fatal(err)
		}
		notes := DropLongChannels(d, d.Name, home)
		if want := map[bool]int{true: 2, false: 3}[dropped]; len(d.Devices.Channels) != want || (len(notes) == 1) != dropped {
			t.Errorf("%s: %d channels, notes %q", home, len(d.Devices.Channels), notes)
		}
		if dropped && !strings.Contains(notes[0], "org.qemu.guest_agent.0") {
			t.Errorf("%s: %q", home, notes)
		}
	}
}
