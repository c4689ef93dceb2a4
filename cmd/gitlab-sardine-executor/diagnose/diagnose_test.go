package diagnose

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"gitlab-sardine-executor/cmd/gitlab-sardine-executor/command"
)

// run runs a command line with a settings file.
func run(t *testing.T, settings string, args ...string) (stdout, path string, err error) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cfg := &command.Settings{}
	app := &cli.App{
		Writer: &out, ErrWriter: io.Discard, Flags: cfg.Flags(),
		Commands:       []*cli.Command{{Name: "config", Subcommands: Config(cfg, &out)}, Version(cfg, "1.2.3", "abc123", &out), Doctor(cfg, &out)},
		ExitErrHandler: func(*cli.Context, error) {},
	}
	err = app.RunContext(t.Context(), append([]string{"test", "--config", path}, args...))
	return out.String(), path, err
}

const (
	unreachable = "connect = 'qemu+unix:///system?socket=/nowhere'\n"
	good        = "[defaults]\nvmdir = '/srv/images'\nstorage = '/nowhere/storage'\n" + unreachable
)

func TestConfigCommands(t *testing.T) {
	out, path, err := run(t, good, "config", "check")
	if err != nil || out != path+": vmdir is an old name; rename it to image_dir\n"+path+": ok\n" {
		t.Errorf("check: %q, %v", out, err)
	}
	wrong := filepath.Join(t.TempDir(), "wrong.toml")
	if err := os.WriteFile(wrong, []byte("[defaults]\ntimeot = '5m'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := run(t, good, "config", "check", wrong); err == nil || !strings.Contains(err.Error(), wrong+`: line 2: unknown key "defaults.timeot" (did you mean "timeout"?)`) {
		t.Errorf("check of a wrong file: %v", err)
	}
	for _, args := range [][]string{{"config", "check", wrong, wrong}, {"config", "print", "image"}, {"config", "check", "/nowhere.toml"}} {
		if _, _, err := run(t, good, args...); err == nil {
			t.Errorf("%q is accepted", args)
		}
	}
	out, path, err = run(t, good, "config", "print", "--image", "debian:12")
	if err != nil || !strings.Contains(out, "# Settings file: "+path) || !strings.Contains(out, "match = 'debian:12'") {
		t.Errorf("print: %v\n%s", err, out)
	}
}

// The first line is for scripts; what cannot be asked is said, and no failure.
func TestVersion(t *testing.T) {
	out, _, err := run(t, good, "version")
	for _, want := range []string{"1.2.3\n", "\ncommit: abc123\n", "\ngo: go1.", "\nlibvirt: ", "\nlibvirt daemon: libvirt cannot be reached: "} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if err != nil || !strings.HasPrefix(out, "1.2.3\n") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, _, err := run(t, "[defaults\n", "version"); err != nil || !strings.Contains(out, "not asked: settings: ") {
		t.Errorf("with wrong settings: %v\n%s", err, out)
	}
}

// The fields of doctor --json are documented and stable.
func TestDoctorJSON(t *testing.T) {
	out, _, err := run(t, "[defaults]\nstorage = '"+t.TempDir()+"'\n"+unreachable, "doctor", "--json")
	var report map[string]any
	if jsonErr := json.Unmarshal([]byte(out), &report); jsonErr != nil {
		t.Fatalf("%v, %v:\n%s", err, jsonErr, out)
	}
	if err == nil || report["level"] != "error" {
		t.Errorf("a host without libvirt: %v, level %v", err, report["level"])
	}
	found := false
	for _, f := range report["findings"].([]any) {
		fields := f.(map[string]any)
		for name, value := range fields {
			if text, ok := value.(string); !ok || text == "" || !strings.Contains(" part level text command ", " "+name+" ") {
				t.Errorf("field %s: %v", name, value)
			}
		}
		found = found || fields["part"] == "libvirt" && fields["level"] == "error"
	}
	if !found {
		t.Errorf("libvirt is not found missing:\n%s", out)
	}
	text, _, _ := run(t, "[defaults]\nstorage = '"+t.TempDir()+"'\nvmdir = '/srv/images'\n"+unreachable, "doctor")
	if !strings.Contains(text, "warning  settings       vmdir is an old name") || !strings.Contains(text, "                        $ sed -i") {
		t.Errorf("as text:\n%s", text)
	}
}
