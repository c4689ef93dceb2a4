//go:build boot

package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"gitlab-sardine-executor/internal/testbed"
)

// A changedGuest is the test guest with some files of its own, made once.
type changedGuest struct {
	// change is shell code that lays them into the current directory, usr and
	// usr/bin of which are there; ../all is the archive of what the guest has.
	change string

	once sync.Once
	dir  string
	err  error
}

// layout is the path of an OCI layout with the guest, tag 1. The arguments are $1
// and so on in change. The test guest is a FAT file system with a kernel and an
// initramfs; a second archive after the first replaces files of it.
func (g *changedGuest) layout(t testing.TB, args ...string) string {
	t.Helper()
	g.once.Do(func() {
		cmd := exec.Command("sh", append([]string{"-euc", `
disk=$1
shift
mkdir -p root/usr/bin
qemu-img convert -f qcow2 -O raw "$disk" guest.raw
mcopy -n -i guest.raw ::initrd initrd
lz4 -d -q -c initrd >all
cd root
` + g.change + `
find . | cpio --quiet -o -H newc -R 0:0 >>../all
cd ..
lz4 -l -1 -q -c all >initrd.new
mcopy -o -i guest.raw initrd.new ::initrd
`, "sh", testbed.Guest(t)}, args...)...)
		cmd.Dir = t.TempDir()
		if output, err := cmd.CombinedOutput(); err != nil {
			g.err = fmt.Errorf("change the guest: %w\n%s", err, output)
			return
		}
		g.dir, g.err = export(t, filepath.Join(cmd.Dir, "guest.raw"), testbed.GuestConfig(t))
	})
	if g.err != nil {
		t.Fatal(g.err)
	}
	return g.dir
}
