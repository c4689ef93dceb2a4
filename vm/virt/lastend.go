package virt

import (
	"io"
	"os"
	"path/filepath"
	"strings"
)

// logTail is how much of a log [Host.PoweredOff] reads: QEMU says little at its end.
const logTail = 16 << 10

// PoweredOff reports whether the domain of that name, which has ended, was shut down by its
// guest. libvirt forgets a transient domain when it ends, and reports why to those who watch
// it. What remains is the log of its QEMU; without it, the answer is no.
func (h *Host) PoweredOff(name string) bool {
	dir := "/var/log/libvirt/qemu"
	if !h.System() {
		cache, err := os.UserCacheDir()
		if err != nil {
			return false
		}
		dir = filepath.Join(cache, "libvirt", "qemu", "log")
	}
	file, err := os.Open(filepath.Join(dir, filepath.Base(name)+".log"))
	if err != nil {
		return false
	}
	defer file.Close()
	if info, err := file.Stat(); err == nil && info.Size() > logTail {
		file.Seek(-logTail, io.SeekEnd)
	}
	text, err := io.ReadAll(io.LimitReader(file, logTail))
	return err == nil && endsWithPowerOff(string(text))
}

// endsWithPowerOff reports whether the log of a domain ends with a shutdown by the guest.
// libvirt writes why it stops a domain (qemuProcessStop in its qemu_process.c). The reason
// "shutdown" also stands for a QEMU that got SIGTERM: from libvirt after the guest's
// shutdown, or from another process, which QEMU names.
func endsWithPowerOff(log string) bool {
	if start := strings.LastIndex(log, ": starting up libvirt version"); start >= 0 {
		log = log[start:]
	}
	for line := range strings.Lines(log) {
		_, by, signaled := strings.Cut(line, "terminating on signal ")
		if signaled && !strings.Contains(by, "libvirtd") && !strings.Contains(by, "virtqemud") {
			return false
		}
	}
	at := strings.LastIndex(log, ": shutting down, reason=")
	return at >= 0 && strings.HasPrefix(log[at:], ": shutting down, reason=shutdown\n")
}
