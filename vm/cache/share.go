package cache

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/virt"
)

// firstLibvirtWithUserShares is the first version that supports virtiofs in qemu:///session.
const firstLibvirtWithUserShares = 10_000_000

// vhostUserDirs are the directories with the descriptions of programs like virtiofsd
// (docs/interop/vhost-user.json of QEMU). libvirt reads them.
var vhostUserDirs = []string{"/etc/qemu/vhost-user", "/usr/share/qemu/vhost-user"}

// CheckShares makes sure that machines on this host can have a [Share]. The error is an
// [errdefs.ErrInvalid].
func CheckShares(h *virt.Host) error {
	if version := h.Version(); !h.System() && version < firstLibvirtWithUserShares {
		return fmt.Errorf("%w: cache = \"share\" needs the system's libvirt, or libvirt 10: %s is libvirt %d.%d.%d, "+
			"which does not support virtiofs for users (cache = \"disk\" works there)", errdefs.ErrInvalid, h.URI(), version/1e6, version/1e3%1e3, version%1e3)
	}
	for _, dir := range vhostUserDirs {
		files, _ := filepath.Glob(filepath.Join(dir, "*.json"))
		for _, file := range files {
			if servesFiles(file) {
				return nil
			}
		}
	}
	return fmt.Errorf("%w: cache = \"share\" needs virtiofsd, and %q describe none "+
		"(Debian 12: qemu-system-common has it; later: virtiofsd)", errdefs.ErrInvalid, vhostUserDirs)
}

// servesFiles reports whether the file describes an installed virtiofsd.
func servesFiles(file string) bool {
	text, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	var program struct{ Type, Binary string }
	if json.Unmarshal(text, &program) != nil || program.Type != "fs" {
		return false
	}
	_, err = os.Stat(program.Binary)
	return err == nil
}
