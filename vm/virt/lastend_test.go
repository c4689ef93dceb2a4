package virt

import "testing"

// What a domain's log says at its end, in the words of libvirt 9.0 and 11.3.
func TestEndsWithPowerOff(t *testing.T) {
	const (
		start    = "2026-11-30 10:00:00.000+0000: starting up libvirt version: 9.0.0, package: 9.0.0-4 (Debian), qemu version: 7.2.9\n"
		libvirt  = "2026-11-30T10:01:00.000000Z qemu-system-x86_64: terminating on signal 15 from pid 123 (/usr/sbin/libvirtd)\n"
		modular  = "2026-11-30T10:01:00.000000Z qemu-system-x86_64: terminating on signal 15 from pid 123 (/usr/sbin/virtqemud)\n"
		stranger = "2026-11-30T10:01:00.000000Z qemu-system-x86_64: terminating on signal 15 from pid 124 (bash)\n"
		stop     = "2026-11-30 10:01:00.100+0000: shutting down, reason="
	)
	for _, test := range []struct {
		name, log string
		want      bool
	}{
		{"the guest shut down", start + libvirt + stop + "shutdown\n", true},
		{"the same with virtqemud", start + modular + stop + "shutdown\n", true},
		{"without a word of QEMU", start + stop + "shutdown\n", true},
		{"it crashed", start + stop + "crashed\n", false},
		{"it was destroyed", start + libvirt + stop + "destroyed\n", false},
		{"QEMU was told to end", start + stranger + stop + "shutdown\n", false},
		{"it runs", start, false},
		{"the next of that name runs", start + libvirt + stop + "shutdown\n" + start, false},
		{"the one before was told to end", start + stranger + stop + "shutdown\n" + start + libvirt + stop + "shutdown\n", true},
		{"a line that is not complete", start + stop + "shutdown", false},
		{"nothing", "", false},
	} {
		if got := endsWithPowerOff(test.log); got != test.want {
			t.Errorf("%s: got %v", test.name, got)
		}
	}
}
