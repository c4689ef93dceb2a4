package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"gitlab-sardine-executor/executor/config"
)

// findings are the findings about a part, a line each.
func findings(t *testing.T, part, settings string, look func(*doctor)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	d := &doctor{settings: s}
	look(d)
	var text strings.Builder
	for _, f := range d.findings {
		if f.Part == part {
			text.WriteString(f.Level.String() + ": " + f.Text + "\n")
		}
	}
	return text.String()
}

// A reserve that is reached stops all pulls: doctor has to report it.
func TestDoctorReserve(t *testing.T) {
	for reserve, want := range map[string]string{"99.999%": "warning: ", "0": ""} {
		settings := fmt.Sprintf("[defaults]\nstorage = %q\nstorage_reserve = %q", t.TempDir(), reserve)
		got := findings(t, "storage", settings, func(d *doctor) {
			dirs, err := d.settings.Dirs()
			if err != nil {
				t.Fatal(err)
			}
			d.storage(dirs)
		})
		if !strings.HasPrefix(got, want) || strings.Contains(got, "no image can be pulled, for storage_reserve is") != (want != "") {
			t.Errorf("storage_reserve = %s: got %q", reserve, got)
		}
	}
}

// A file that cannot be written fails no job: doctor has to report it.
func TestDoctorWrittenFiles(t *testing.T) {
	dir := t.TempDir()
	there := filepath.Join(dir, "there")
	if err := os.WriteFile(there, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ path, want string }{
		{there, "ok"},
		{dir, "warning"},
		{filepath.Join(dir, "not-yet"), "ok"},
		{filepath.Join(dir, "no-directory", "file"), "warning"},
		{filepath.Join(there, "file"), "warning"},
	} {
		for setting, replaced := range map[string]bool{"log_file": false, "metrics_textfile": true} {
			got := findings(t, setting, "", func(d *doctor) { d.written(setting, test.path, replaced) })
			if !strings.HasPrefix(got, test.want+": ") || strings.Count(got, "\n") != 1 || !strings.Contains(got, test.path) {
				t.Errorf("%s = %s: want %s, got %q", setting, test.path, test.want, got)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "not-yet")); err == nil {
		t.Error("doctor has created the file")
	}
	if got := findings(t, "log_file", "", func(d *doctor) { d.written("log_file", "", false) }); got != "" {
		t.Errorf("without the setting: %q", got)
	}
}

func TestDoctorSnapshots(t *testing.T) {
	for _, test := range []struct{ settings, want string }{
		{"", ""},
		{"[defaults]\nmemory_snapshot = true\nnetwork = \"user\"\n", "ok: machines start"},
		{"[defaults]\nmemory_snapshot = true\nnetwork = \"default\"\n", "warning: machines boot: memory_snapshot needs network = \"user\""},
		{"[defaults]\nmemory_snapshot = true\nnetwork = \"user\"\ncache = \"disk\"\n", "warning: machines boot: memory_snapshot needs cache"},
		{"[defaults]\nnetwork = \"user\"\n[[image]]\nmatch = \"a/*\"\nmemory_snapshot = true\n", "ok: machines start"},
		{"[defaults]\nmemory_snapshot = true\nnetwork = \"user\"\n[[image]]\nmatch = \"a/*\"\nnetwork = \"lan\"\n", "warning: machines of a/* boot: memory_snapshot needs network"},
	} {
		got := findings(t, "memory_snapshot", test.settings, func(d *doctor) { d.snapshots(false) })
		if !strings.HasPrefix(got, test.want) || test.want == "" && got != "" || strings.Count(got, "\n") > 1 {
			t.Errorf("settings\n%s\nwant %q, got %q", test.settings, test.want, got)
		}
	}
}

func TestDoctorAliases(t *testing.T) {
	got := findings(t, "settings", "[defaults]\nvmdir = '/images'\n", (*doctor).settingsFile)
	if want := "warning: vmdir is an old name; rename it to image_dir\n"; !strings.HasSuffix(got, want) {
		t.Errorf("got %q, want …%q", got, want)
	}
}

// A storage that QEMU's user cannot enter is an error, with the command that helps.
func TestDoctorReach(t *testing.T) {
	base, err := os.MkdirTemp("/tmp", "reach") // others can enter /tmp, but not a test's directory
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	storage := filepath.Join(base, "storage")
	if err := os.Mkdir(storage, 0o755); err != nil {
		t.Fatal(err)
	}
	dirs := config.Dirs{Store: storage, Overlays: filepath.Join(storage, "clones")}
	for mode, want := range map[os.FileMode]string{0o755: "", 0o700: "error: QEMU runs as the user 65533, which cannot enter " + base + ", "} {
		if err := os.Chmod(base, mode); err != nil {
			t.Fatal(err)
		}
		got := findings(t, "storage", "", func(d *doctor) { d.reachAs(syscall.Credential{Uid: 65533, Gid: 65533}, dirs) })
		if !strings.HasPrefix(got, want) || want == "" && got != "" || strings.Count(got, "\n") > 1 {
			t.Errorf("mode %o: got %q, want %q", mode, got, want)
		}
	}
}

func TestSessionSocket(t *testing.T) {
	home := "/home/gitlab-runner/.config"
	if path := sessionSocket(home); len(path) > socketPathMax || !strings.HasPrefix(path, home+"/libvirt/") {
		t.Errorf("%d bytes: %s", len(path), path)
	}
}

func TestQuote(t *testing.T) {
	for text, want := range map[string]string{"/srv/images-1": "/srv/images-1", "": "''", "a b": "'a b'", "it's $(x)": `'it'\''s $(x)'`} {
		if got := quote(text); got != want {
			t.Errorf("%q: got %s, want %s", text, got, want)
		}
	}
}
