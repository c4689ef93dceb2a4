//go:build boot && nightly

package admin

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/export"
)

// TestARM64 runs a job in a guest for arm64, which is emulated: only if the administrator allows
// it, and with a warning.
func TestARM64(t *testing.T) {
	s := newSite(t, testbed.Session(t))
	layout := filepath.Join(t.TempDir(), "arm64")
	ref, err := oci.ParseReference("oci:" + layout + ":1")
	if err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile(testbed.GuestConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	guest, err := oci.ParseGuestConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	o := export.Options{Disks: []export.Disk{{Path: testbed.GuestARM64(t)}}, Architecture: "arm64", Guest: guest, Format: "chunked"}
	if _, err := export.Export(t.Context(), ref, o); err != nil {
		t.Fatal(err)
	}
	image := "oci:" + s.copyLayout(t, layout, "arm64") + ":1"
	if said := s.fails(t, "try", image, "--", "true"); !strings.Contains(said, `architecture = "arm64"`) {
		t.Errorf("without the setting: %s", said)
	}
	s.Configure(t, `timeout = "15m"`, `memory = "512MiB"`, "[[image]]", fmt.Sprintf("match = %q", image), `architecture = "arm64"`)
	cmd := s.Mode.Command(t.Context(), s.Driver, "--config", s.Config, "try", image, "--", "uname", "-m")
	said, err := cmd.CombinedOutput()
	t.Logf("%s", said)
	if err != nil || !strings.Contains(string(said), "\naarch64\n") || !strings.Contains(string(said), "the machine is emulated") {
		t.Errorf("%v", err)
	}
}
