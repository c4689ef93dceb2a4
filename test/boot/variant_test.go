//go:build boot

package boot

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/disk"
)

// A variant is a test guest that behaves otherwise.
type variant struct {
	// arguments are added to the kernel's.
	arguments string
	// files replace those of the guest: contents by path.
	files map[string]string
}

// of makes the variant's disk and has the machine boot it. The test guest is a FAT
// file system with a kernel and an initramfs; a second archive after the first
// replaces files of it.
func (v variant) of(t testing.TB, l *lab) func(*vm.Spec) {
	t.Helper()
	path := filepath.Join(l.dir, "variant.raw")
	run(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", l.guest, path)
	config := run(t, "mtype", "-i", path, "::syslinux.cfg")
	config = strings.TrimRight(config, "\n") + " " + v.arguments + "\n"
	file := filepath.Join(l.dir, "syslinux.cfg")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, "mcopy", "-o", "-i", path, file, "::syslinux.cfg")
	if v.files != nil {
		initrd := filepath.Join(l.dir, "initrd")
		run(t, "mcopy", "-n", "-i", path, "::initrd", initrd)
		// The kernel finds nothing behind an archive that lz4 has compressed.
		run(t, "sh", "-c", `cd "$1" && { lz4 -d -q -c initrd; cat "$2"; } | lz4 -l -1 -q -c >initrd.new`, "sh", l.dir, v.archive(t, l))
		run(t, "mcopy", "-o", "-i", path, initrd+".new", "::initrd")
	}
	return func(s *vm.Spec) {
		s.Disks = []disk.Disk{{Name: "variant.raw", Path: path, Format: "raw", VirtualSize: 48 << 20}}
	}
}

// archive holds the variant's files.
func (v variant) archive(t testing.TB, l *lab) string {
	t.Helper()
	root := filepath.Join(l.dir, "extra")
	for path, content := range v.files {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	archive := filepath.Join(l.dir, "extra.cpio")
	cmd := exec.Command("sh", "-c", `find . | cpio --quiet -o -H newc -R 0:0 >"$1"`, "sh", archive)
	cmd.Dir = root
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v\n%s", err, output)
	}
	return archive
}

// asRoot is a guest whose user is root.
var asRoot = variant{files: map[string]string{
	"etc/passwd": "root:x:0:0:root:/root:/usr/bin/bash\nvagrant:x:0:0:vagrant:/root:/usr/bin/bash\n",
}}
