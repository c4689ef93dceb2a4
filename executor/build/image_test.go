package build

import (
	"bytes"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/vm"
)

// closing notes in the log when it is closed.
type closing struct {
	joblog.Progress
	log *joblog.Log
}

func (c closing) Close() { c.log.Say("closed") }

// The display of the export is closed, once, before the log says what comes after it.
func TestExportClosesItsProgress(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "disk.iso"), strings.Repeat("x", 4096))
	to, err := oci.ParseReference("oci:" + filepath.Join(dir, "layout"))
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	log := joblog.New(&said)
	b := &builder{Options: Options{
		To: to, NoVerify: true, Log: log,
		Progress: func(string) joblog.Progress { return closing{joblog.NoProgress(), log} },
	}}
	m := &machine{b: b, image: &oci.Image{Dir: dir, Disks: []oci.Disk{{Name: "disk.iso", Format: "raw", CDROM: true}}}, started: &vm.Started{}}
	if _, err := b.export(t.Context(), m, nil); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(said.String()), "\n")
	if exported := slices.IndexFunc(lines, func(line string) bool { return strings.HasPrefix(line, "Exported (") }); len(lines) != 2 || lines[0] != "closed" || exported != 1 {
		t.Errorf("got %q", lines)
	}
}
