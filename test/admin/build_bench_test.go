//go:build boot

package admin

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"gitlab-sardine-executor/internal/testbed"
)

// phase finds the durations that a build reports for its boot and its steps.
var phase = regexp.MustCompile(`(?m)^(?:Guest ready at .*|Step \d+ done) \(([0-9.]+) s\)$`)

// BenchmarkBuild compares what a build of a small change costs besides boot and script (seal,
// power-off, export) with qemu-img convert of the same disk, in one run. The whole Debian is the
// base. The layout has an image of the base already, as from the second build on.
//
//	go test -tags boot -run '^$' -bench BenchmarkBuild -benchtime 1x ./test/admin
func BenchmarkBuild(b *testing.B) {
	mode := testbed.Session(b)
	s := &site{Site: testbed.NewSite(b, mode, program, `timeout = "15m"`), dir: mode.Dir(b)}
	content, err := os.ReadFile(testbed.FullGuest(b))
	if err != nil {
		b.Fatal(err)
	}
	disk := mode.WriteFile(b, filepath.Join(s.dir, "full.qcow2"), string(content))
	script := mode.WriteFile(b, filepath.Join(s.dir, "small.sh"), "echo changed >/etc/motd\n")
	out := "oci:" + filepath.Join(s.dir, "out")
	s.Run(b, "export", "--quiet", "--format", "chunked", "--disk", disk, out+":base")
	s.Run(b, "pull", "--quiet", "file:"+disk)
	for b.Loop() {
		cmd := mode.Command(b.Context(), s.Driver, "--config", s.Config, "build", "--quiet", "--verify=false", "--from", "file:"+disk, "--run", script, out+":1")
		began := time.Now()
		said, err := cmd.CombinedOutput()
		rest := time.Since(began).Seconds()
		if err != nil {
			b.Fatalf("%v\n%s", err, said)
		}
		for _, found := range phase.FindAllStringSubmatch(string(said), -1) {
			seconds, err := strconv.ParseFloat(found[1], 64)
			if err != nil {
				b.Fatal(err)
			}
			rest -= seconds
		}
		began = time.Now()
		mode.Run(b, "qemu-img", "convert", "-O", "qcow2", disk, filepath.Join(s.dir, "converted.qcow2"))
		convert := time.Since(began).Seconds()
		b.ReportMetric(rest, "s/rest")
		b.ReportMetric(convert, "s/convert")
		b.ReportMetric(rest/convert, "ratio")
	}
}
