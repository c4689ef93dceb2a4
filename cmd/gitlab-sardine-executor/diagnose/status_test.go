package diagnose

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/status"
)

var example = &status.Status{
	Time: time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC),
	Machines: []status.Machine{
		{Name: "sardine-0-7", State: status.Ready, Job: "7", Project: "group/project", Image: "evil\x1b[2Jimage", Memory: 1 << 30, Created: time.Date(2026, 1, 2, 11, 58, 0, 0, time.UTC)},
		{Name: "sardine-0-8", State: "starting", Memory: 2 << 30},
	},
	Waiting:  status.Waiting{First: "sardine-0-9", Count: 2},
	Pulls:    []status.Pull{{Digest: "sha256:0123456789abcdef", Source: "registry.example.com", Received: 1 << 20}},
	Room:     status.Room{Slots: 2, SlotsUsed: 2, Memory: 8 << 30, MemoryUsed: 3 << 30, MemoryReserve: 512 << 20, DiskDir: "/srv", Disk: 100 << 30, DiskFree: 50 << 30, DiskReserve: 5 << 30},
	Failures: []status.Failure{{Stage: "prepare", Job: "5", Class: "system failure", Error: "one\ntwo"}},
}

func TestStatusText(t *testing.T) {
	text := statusText(example, false)
	if strings.Contains(text, "\x1b") {
		t.Errorf("a pipe gets control characters: %q", text)
	}
	for _, want := range []string{
		"MACHINES\n  NAME         STATE     JOB  PROJECT        MEMORY  AGE        IMAGE\n" +
			"  sardine-0-7  ready     7    group/project  1GiB    2 minutes  evil\\x1b[2Jimage\n" +
			"  sardine-0-8  starting  -    -              2GiB    -          -\n",
		"WAITING FOR ROOM\n  2, next: sardine-0-9\n",
		"sha256:0123456789ab  registry.example.com  1MiB      ?   0B       -\n",
		"IMAGES: none\n",
		"  slots   2 of 2 used\n  memory  3GiB of 8GiB used, 512MiB reserved for the host\n  disk    50GiB of 100GiB free, 5GiB reserved, in /srv\n",
		"prepare  5    -        system failure  one; two\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s\nlacks:\n%s", text, want)
		}
	}
	coloured := statusText(example, true)
	stripped := coloured
	for _, code := range []string{bold, red, green, yellow, "0"} {
		stripped = strings.ReplaceAll(stripped, "\x1b["+code+"m", "")
	}
	if stripped != text || coloured == text {
		t.Errorf("colours change more than the colour:\n%q", coloured)
	}
}

// Without libvirt, nothing says that there are no machines.
func TestStatusTextWithoutLibvirt(t *testing.T) {
	text := statusText(&status.Status{}, false)
	if !strings.Contains(text, "MACHINES\n  libvirt did not answer\n") || strings.Contains(text, "slots") {
		t.Error(text)
	}
}

func TestNoColour(t *testing.T) {
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	if !wantsColours() {
		t.Error("an empty NO_COLOR counts")
	}
	t.Setenv("NO_COLOR", "1")
	if wantsColours() {
		t.Error("NO_COLOR is ignored")
	}
}

// A watcher counts what is printed and ends the command after the third time.
type watcher struct {
	bytes.Buffer
	lines  int
	cancel context.CancelFunc
}

func (w *watcher) Write(p []byte) (int, error) {
	if w.lines++; w.lines == 3 {
		w.cancel()
	}
	return w.Buffer.Write(p)
}

func TestStatusWatch(t *testing.T) {
	settings, err := config.Parse([]byte(fmt.Sprintf("[defaults]\nconnect = 'test:///default'\nstorage = '%s'\n", t.TempDir())))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	w, stderr := &watcher{cancel: cancel}, &bytes.Buffer{}
	if err := showStatus(ctx, settings, &statusFlags{asJSON: true, watch: true, interval: minInterval}, w, stderr); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(w.String()), "\n")
	if len(lines) != 3 || stderr.Len() > 0 {
		t.Fatalf("%d lines, stderr %q", len(lines), stderr)
	}
	for _, line := range lines {
		var s status.Status
		if err := json.Unmarshal([]byte(line), &s); err != nil || s.Machines == nil || s.Room.Disk == 0 {
			t.Errorf("%v: %s", err, line)
		}
	}
}
