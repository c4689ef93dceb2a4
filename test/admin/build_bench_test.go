//go:build boot

package admin

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/internal/testbed"
)

// phases are what a build reports with its duration, by the unit of the benchmark.
var phases = map[string]*regexp.Regexp{
	"boot-s":     regexp.MustCompile(`(?m)^Guest ready at .* \(([0-9.]+) s\)$`),
	"script-s":   regexp.MustCompile(`(?m)^Step \d+ done \(([0-9.]+) s\)$`),
	"seal-s":     regexp.MustCompile(`(?m)^Sealed \(([0-9.]+) s\)$`),
	"poweroff-s": regexp.MustCompile(`(?m)^Powered off \(([0-9.]+) s\)$`),
	"export-s":   regexp.MustCompile(`(?m)^Exported \(([0-9.]+) s\)$`),
	"verify-s":   regexp.MustCompile(`(?m)^Verified: .* \(([0-9.]+) s\)$`),
}

// seconds adds up the durations of a phase. The boots of the verification are part of it.
func seconds(b *testing.B, unit, said string) (sum float64) {
	if unit == "boot-s" {
		said, _, _ = strings.Cut(said, "Sealing")
	}
	for _, found := range phases[unit].FindAllStringSubmatch(said, -1) {
		value, err := strconv.ParseFloat(found[1], 64)
		if err != nil {
			b.Fatal(err)
		}
		sum += value
	}
	return sum
}

// BenchmarkBuild compares what a build of a small change costs besides boot and script with
// qemu-img convert of the same disk, in one run, for the small guest and for a whole Debian. The
// layout has an image of the base already, as from the second build on.
//
// "rest" is the time of the whole command without boot, script and verification: seal, power-off,
// export, and what does not report its time, such as the removal of machines. "verify" is the two
// boots of the verification and the time to unpack the image.
//
//	go test -tags boot -run '^$' -bench BenchmarkBuild -benchtime 1x ./test/admin
func BenchmarkBuild(b *testing.B) {
	for _, base := range []struct {
		name string
		disk func(testing.TB) string
	}{{"small", testbed.Guest}, {"full", testbed.FullGuest}} {
		b.Run(base.name, func(b *testing.B) { benchmarkBuild(b, base.disk(b)) })
	}
}

func benchmarkBuild(b *testing.B, guest string) {
	mode := testbed.Session(b)
	s := &site{Site: testbed.NewSite(b, mode, program, `timeout = "15m"`, `memory = "1GiB"`), dir: mode.Dir(b)}
	content, err := os.ReadFile(guest)
	if err != nil {
		b.Fatal(err)
	}
	disk := mode.WriteFile(b, filepath.Join(s.dir, "disk.qcow2"), string(content))
	script := mode.WriteFile(b, filepath.Join(s.dir, "small.sh"), "echo changed >/etc/motd\n")
	out := "oci:" + filepath.Join(s.dir, "out")
	config := mode.WriteFile(b, filepath.Join(s.dir, "vm.json"), "{}")
	if guest == testbed.Guest(b) {
		content, err := os.ReadFile(testbed.GuestConfig(b))
		if err != nil {
			b.Fatal(err)
		}
		mode.WriteFile(b, config, string(content))
	}
	s.Run(b, "export", "--quiet", "--format", "chunked", "--vm-config", config, "--disk", disk, out+":base")
	s.Run(b, "pull", "--quiet", out+":base")
	for b.Loop() {
		cmd := mode.Command(b.Context(), s.Driver, "--config", s.Config, "build", "--quiet", "--from", out+":base", "--run", script, out+":1")
		began := time.Now()
		said, err := cmd.CombinedOutput()
		total := time.Since(began).Seconds()
		if err != nil {
			b.Fatalf("%v\n%s", err, said)
		}
		b.Logf("%s", said)
		began = time.Now()
		mode.Run(b, "qemu-img", "convert", "-O", "qcow2", disk, filepath.Join(s.dir, "converted.qcow2"))
		convert := time.Since(began).Seconds()
		took := make(map[string]float64)
		for unit := range phases {
			took[unit] = seconds(b, unit, string(said))
			b.ReportMetric(took[unit], unit)
		}
		rest := total - took["boot-s"] - took["script-s"] - took["verify-s"]
		b.ReportMetric(total, "total-s")
		b.ReportMetric(rest, "rest-s")
		b.ReportMetric(convert, "convert-s")
		b.ReportMetric(rest/convert, "rest/convert")
		b.ReportMetric(took["verify-s"]/took["boot-s"], "verify/boot")
	}
}
