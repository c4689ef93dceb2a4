package status

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/vm/admission"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt/virttest"
)

func parse(t *testing.T, text string) *config.Settings {
	t.Helper()
	s, err := config.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// addImage puts an image of one small disk into the store.
func addImage(t *testing.T, root, hex, reference string) {
	t.Helper()
	name := "sha256-" + hex + "." + strings.Repeat("0", 32)
	dir := filepath.Join(root, "images", name)
	files := map[string]string{
		filepath.Join(dir, "image.json"): `{"digest":"sha256:` + hex + `"}`,
		filepath.Join(dir, "disk0"):      "disk",
	}
	if reference != "" {
		files[filepath.Join(root, "references", "r.json")] = fmt.Sprintf(`{"reference":%q,"digest":"sha256:%s","image":%q}`, reference, hex, name)
	}
	for path, text := range files {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// hold locks a file with that content until the test ends, as a pull does.
func hold(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	if _, err := file.WriteString(content); err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
}

func TestCollect(t *testing.T) {
	root := t.TempDir()
	log := filepath.Join(root, "sardine.log")
	settings := parse(t, fmt.Sprintf("[defaults]\nconnect = 'test:///default'\nstorage = '%s'\nslots = 3\nlog_file = '%s'\npassword = 'hunter22'\nusername = 'ci'\n", root, log))
	h := virttest.Open(t)
	created := time.Now().Add(-time.Minute).UTC().Truncate(time.Second)
	hex := strings.Repeat("a", 64)
	for _, m := range []record.Record{
		{Job: "11", Project: "group/a", Image: "registry.example.com/vms/debian:12", Digest: "sha256:" + hex, Address: "127.0.0.1:2222", User: "ci", Created: created},
		{Job: "12", Project: "group/b", Created: created.Add(time.Second)},
	} {
		metadata, err := m.Metadata()
		if err != nil {
			t.Fatal(err)
		}
		dom := virttest.Start(t, h, &libvirtxml.Domain{Name: "sardine-0-" + m.Job, Metadata: metadata})
		t.Cleanup(func() { dom.Free() })
	}
	addImage(t, root, hex, "registry.example.com/vms/debian:12")
	hold(t, filepath.Join(root, "locks", "sha256-"+strings.Repeat("b", 64)+"."+strings.Repeat("1", 32)+".0123456789abcdef.0"), `{"received":10,"total":100,"source":"registry.example.com"}`)
	if err := os.Mkdir(filepath.Join(root, "jobs"), 0o700); err != nil {
		t.Fatal(err)
	}
	policy := admission.Policy{Slots: 3, Reserve: -1, Timeout: 10 * time.Second}
	release, err := policy.Admit(t.Context(), h, "sardine-0-13", 1<<30, filepath.Join(root, "jobs"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { release() })
	hold(t, filepath.Join(root, "jobs", ".admission"), "sardine-0-14\n")

	s, err := Collect(t.Context(), settings)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range s.Machines {
		names = append(names, m.Name+" "+m.State)
	}
	want := []string{"sardine-0-11 ready", "sardine-0-12 starting", "sardine-0-13 starting"}
	if !reflect.DeepEqual(names, want) {
		t.Errorf("machines %q, want %q", names, want)
	}
	if s.Waiting != (Waiting{First: "sardine-0-14", Count: 1}) {
		t.Errorf("waiting: %+v", s.Waiting)
	}
	if len(s.Pulls) != 1 || s.Pulls[0].Received != 10 || s.Pulls[0].Total != 100 || s.Pulls[0].Source != "registry.example.com" {
		t.Errorf("pulls: %+v", s.Pulls)
	}
	if len(s.Images) != 1 || s.Images[0].Machines != 1 || !reflect.DeepEqual(s.Images[0].References, []string{"registry.example.com/vms/debian:12"}) {
		t.Errorf("images: %+v", s.Images)
	}
	if r := s.Room; r.Slots != 3 || r.SlotsUsed != 3 || r.Memory == 0 || r.MemoryUsed < 1<<30 || r.Disk == 0 || r.DiskReserve == 0 || r.DiskDir != root {
		t.Errorf("room: %+v", r)
	}
	if len(s.Problems) != 0 || s.Failures == nil || len(s.Failures) != 0 {
		t.Errorf("problems %q, failures %+v", s.Problems, s.Failures)
	}
	text, err := json.Marshal(s)
	if err != nil || strings.Contains(string(text), "hunter22") {
		t.Errorf("%v: %s", err, text)
	}
}

// Without libvirt, the rest is there.
func TestCollectWithoutLibvirt(t *testing.T) {
	root := t.TempDir()
	addImage(t, root, strings.Repeat("c", 64), "")
	s, err := Collect(t.Context(), parse(t, fmt.Sprintf("[defaults]\nconnect = 'qemu+unix:///session?socket=%s/none'\nstorage = '%s'\n", root, root)))
	if err != nil {
		t.Fatal(err)
	}
	if s.Machines != nil || s.Failures != nil || len(s.Images) != 1 || s.Room.Disk == 0 || len(s.Problems) != 1 || !strings.HasPrefix(s.Problems[0], "machines: ") {
		t.Errorf("got %+v", s)
	}
}

// Failures are found in both formats of the log, the latest first, and bounded.
func TestFailures(t *testing.T) {
	for format, handler := range map[string]func(*os.File) slog.Handler{
		"text": func(f *os.File) slog.Handler { return slog.NewTextHandler(f, nil) },
		"json": func(f *os.File) slog.Handler { return slog.NewJSONHandler(f, nil) },
	} {
		t.Run(format, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			file, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			logger := slog.New(handler(file))
			for n := range maxFailures + 2 {
				logger.Info("stage done", "stage", "run", "job", "0", "status", 1, "note", "no stage failed here")
				logger.With("stage", "prepare", "job", fmt.Sprint(n), "project", "group/x y", "image", `"=`, "seconds", 1.5).
					Error("stage failed", "class", "system failure", "error", fmt.Errorf("first \"line\"\nsecond = %d", n))
			}
			fmt.Fprint(file, "stage failed \"broken line=\n{\"msg\":\"stage failed\"\n\ntime=never msg=\"stage failed\"\n")
			s := &Status{}
			if err := s.addFailures(path); err != nil {
				t.Fatal(err)
			}
			if len(s.Failures) != maxFailures {
				t.Fatalf("%d failures: %+v", len(s.Failures), s.Failures)
			}
			latest := s.Failures[0]
			if time.Since(latest.Time) > time.Hour {
				t.Errorf("time %s", latest.Time)
			}
			latest.Time = time.Time{}
			if want := (Failure{Stage: "prepare", Job: "11", Project: "group/x y", Image: `"=`, Class: "system failure", Error: "first \"line\"\nsecond = 11"}); latest != want {
				t.Errorf("got %+v, want %+v", latest, want)
			}
		})
	}
}

func TestFailuresOfAMissingLog(t *testing.T) {
	s := &Status{}
	if err := s.addFailures(filepath.Join(t.TempDir(), "log")); err != nil {
		t.Error(err)
	}
	if err := s.addFailures(t.TempDir()); err == nil {
		t.Error("a directory was read as a log")
	}
}

// docs/status.md describes every field of the JSON.
func TestPageDescribesEveryField(t *testing.T) {
	page, err := os.ReadFile("../../docs/status.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, typ := range []reflect.Type{
		reflect.TypeFor[Status](), reflect.TypeFor[Machine](), reflect.TypeFor[Waiting](), reflect.TypeFor[Pull](),
		reflect.TypeFor[Image](), reflect.TypeFor[Room](), reflect.TypeFor[Failure](),
	} {
		for i := range typ.NumField() {
			name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			if name == "" || !strings.Contains(string(page), "`"+name+"`") {
				t.Errorf("docs/status.md does not describe `%s` of %s", name, typ.Name())
			}
		}
	}
}

func FuzzFailure(f *testing.F) {
	f.Add(`time=2026-01-02T03:04:05Z level=ERROR msg="stage failed" error="a \"b\""`)
	f.Add(`{"time":"2026-01-02T03:04:05Z","msg":"stage failed","error":"x"}`)
	f.Fuzz(func(t *testing.T, line string) {
		if failure, ok := parseFailure(line); ok && failure.Time.IsZero() && !strings.Contains(line, "0001-01-01") {
			t.Errorf("%q has no time: %+v", line, failure)
		}
	})
}
