//go:build boot

package boot

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/vm/define"
	"gitlab-sardine-executor/vm/virt"
)

// BenchmarkClone clones a domain with three disks of 60 GB, one of them raw and
// one on a base of its own, under the system's libvirtd. It reports the median of
// the time and what the files of a clone take on the host's disk.
func BenchmarkClone(b *testing.B) {
	mode := testbed.System(b)
	dir := mode.Dir(b)
	disks := benchDisks(b, dir)
	xml := fmt.Sprintf(`<domain type='qemu'><name>big</name><memory unit='MiB'>64</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>%s</devices></domain>`, disks)
	mode.Virsh(b, "define", mode.WriteFile(b, filepath.Join(dir, "big.xml"), xml))
	b.Cleanup(func() { mode.Virsh(b, "undefine", "big") })
	host, err := virt.Open(b.Context(), mode.Connect)
	if err != nil {
		b.Fatal(err)
	}
	defer host.Close()
	for _, start := range []define.StartMode{define.CloneDefine, define.CloneEphemeral} {
		b.Run(string(start), func(b *testing.B) {
			var times []time.Duration
			var used int64
			for b.Loop() {
				began := time.Now()
				clone, err := define.Clone(b.Context(), host, define.CloneOptions{Source: "big", Start: start, Dir: filepath.Join(dir, "clones")})
				if err != nil {
					b.Fatal(err)
				}
				times = append(times, time.Since(began))
				b.StopTimer()
				used = max(used, usage(b, clone.Files))
				if start == define.CloneEphemeral {
					mode.Virsh(b, "destroy", clone.Name)
				} else {
					mode.Virsh(b, "undefine", clone.Name, "--remove-all-storage")
				}
				for _, path := range clone.Files {
					os.Remove(path)
				}
				b.StartTimer()
			}
			slices.Sort(times)
			b.ReportMetric(float64(times[len(times)/2].Microseconds())/1000, "median-ms")
			b.ReportMetric(float64(used)/1024, "KiB/clone")
		})
	}
}

// benchDisks makes the disks of the source and returns their XML.
func benchDisks(b *testing.B, dir string) string {
	b.Helper()
	path := func(name string) string { return filepath.Join(dir, name) }
	run(b, "qemu-img", "create", "-q", "-f", "qcow2", path("system.qcow2"), "60G")
	run(b, "qemu-img", "create", "-q", "-f", "raw", path("data.raw"), "60G")
	run(b, "qemu-img", "create", "-q", "-f", "qcow2", path("base.qcow2"), "60G")
	run(b, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", path("base.qcow2"), path("top.qcow2"))
	var xml strings.Builder
	for i, name := range []string{"system.qcow2", "data.raw", "top.qcow2"} {
		fmt.Fprintf(&xml, "<disk type='file' device='disk'><driver name='qemu' type='%s'/><source file='%s'/><target dev='vd%c' bus='virtio'/></disk>",
			strings.TrimPrefix(filepath.Ext(name), "."), path(name), 'a'+i)
	}
	return xml.String()
}

// usage is what files take on disk, in bytes; those that are unlinked, nothing.
func usage(b *testing.B, paths []string) int64 {
	b.Helper()
	var sum int64
	for _, path := range paths {
		if _, err := os.Stat(path); err != nil {
			continue
		}
		var kib int64
		if _, err := fmt.Sscanf(run(b, "du", "-k", path), "%d", &kib); err != nil {
			b.Fatal(err)
		}
		sum += kib << 10
	}
	return sum
}
