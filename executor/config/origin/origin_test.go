package origin

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"gitlab-sardine-executor/executor/config"
)

const settings = `# a comment
[defaults]
storage = "/srv/sardine"
vmdir = "/srv/images"
timeout = "90s"
cpus = "auto"
memory = "1536MiB"
password = "secret"
pull_policy = ["always", "if-not-present"]
storage_reserve = "7.5%"
host_reserve = "1000B"
log_level = "warn"
allowed_images = ["registry.example.com/**"]

[[image]]
match = "registry.example.com/**"
timeout = "10m"

[[image]]
match = "registry.example.com/vms/**"
timeout = "20m"
trusted = true
network = "lan"
password = "another secret"
`

func load(t *testing.T, text string) *config.Settings {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func printed(t *testing.T, s *config.Settings, image string) string {
	t.Helper()
	var text strings.Builder
	if err := Print(&text, s, image); err != nil {
		t.Fatal(err)
	}
	return text.String()
}

func TestPrint(t *testing.T) {
	s := load(t, settings)
	for image, want := range map[string][]string{
		"": {
			"# Settings file: " + s.Path,
			`storage = '/srv/sardine' # [defaults], line 3`,
			`image_dir = '/srv/images' # [defaults], line 4, as vmdir`,
			`overlay_dir = '/srv/sardine/clones' # default`,
			`timeout = '1m30s' # [defaults], line 5`,
			`cpus = 'auto' # [defaults], line 6`,
			`memory = '1536MiB' # [defaults], line 7`,
			`password = '********' # [defaults], line 8`,
			`pull_policy = ['always', 'if-not-present'] # [defaults], line 9`,
			`storage_reserve = '7.5%' # [defaults], line 10`,
			`host_reserve = '1000' # [defaults], line 11`,
			`queue_timeout = '30m0s' # default`,
			`log_level = 'warn' # [defaults], line 12`,
			`cache_size = '20GiB' # default`,
			`slots = 0 # default`,
			`firmware = 'auto' # default`,
		},
		"registry.example.com/vms/debian:12": {
			`match = 'registry.example.com/vms/debian:12'`,
			`timeout = '20m0s' # [[image]] match = "registry.example.com/vms/**", line 21`,
			`trusted = true # [[image]] match = "registry.example.com/vms/**", line 22`,
			`network = 'lan' # [[image]] match = "registry.example.com/vms/**", line 23`,
			`password = '********' # [[image]] match = "registry.example.com/vms/**", line 24`,
			`memory = '1536MiB' # [defaults], line 7`,
			`ssh_agent = false # default`,
		},
		"docker.io/library/debian:12": {"# allowed_images does not allow this image:", `timeout = '1m30s' # [defaults], line 5`},
	} {
		got := printed(t, s, image)
		lines := strings.Split(got, "\n")
		for i, line := range lines {
			lines[i] = strings.Join(strings.Fields(line), " ")
		}
		for _, line := range want {
			if !strings.Contains("\n"+strings.Join(lines, "\n")+"\n", "\n"+line+"\n") {
				t.Errorf("image %q: no line %s in\n%s", image, line, got)
			}
		}
		if strings.Contains(got, "secret") {
			t.Errorf("it shows a password:\n%s", got)
		}
	}
}

// What is printed means the same as what was read.
func TestPrintIsSettings(t *testing.T) {
	for name, text := range map[string]string{
		"defaults": "",
		"settings": strings.ReplaceAll(settings, "vmdir", "image_dir"),
		"another form": "defaults = {slots = 3, timeout = '7m'}\n" +
			"[[image]]\nmatch = 'registry.example.com/vms/**'\nmemory = '3GiB'\n",
	} {
		s := load(t, text)
		again := load(t, strings.ReplaceAll(printed(t, s, ""), "********", "secret"))
		want, got := s.For("other.example.com/x:1"), again.For("other.example.com/x:1")
		if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(config.Resolved{})); diff != "" {
			t.Errorf("%s (-read +printed):\n%s", name, diff)
		}
		if want, got := s.Defaults.StorageReserve, again.Defaults.StorageReserve; want != got {
			t.Errorf("%s: storage_reserve %v, printed %v", name, want, got)
		}
		if s.Defaults.Slots != again.Defaults.Slots || s.Defaults.HostReserve != again.Defaults.HostReserve || s.Defaults.LogLevel != again.Defaults.LogLevel {
			t.Errorf("%s: %+v, printed %+v", name, s.Defaults, again.Defaults)
		}
		const image = "registry.example.com/vms/debian:12"
		again = load(t, strings.ReplaceAll(printed(t, s, image), "********", "another secret"))
		if diff := cmp.Diff(s.For(image), again.For(image), cmpopts.IgnoreUnexported(config.Resolved{})); diff != "" {
			t.Errorf("%s (-read +printed):\n%s", name, diff)
		}
	}
}

// Keys are found in whatever form TOML has for them.
func TestFind(t *testing.T) {
	got := find([]byte("defaults.slots = 1\n[defaults]\n'timeout' = '5m'\n\n\"network\" = 'user'\n[[ image ]]\nmatch = 'a'\n\n[[image]]\n\nmatch = '''\nb'''\ncpus = 1\n[serve]\nlisten = ''\n"))
	want := places{
		serve:    map[string]int{"listen": 15},
		defaults: map[string]int{"slots": 1, "timeout": 3, "network": 5},
		images:   []map[string]int{{"match": 7}, {"match": 11, "cpus": 13}},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(places{})); diff != "" {
		t.Error(diff)
	}
	if got := find([]byte("defaults = {slots = 3}\n")); got.defaults["slots"] != 1 {
		t.Errorf("an inline table: %+v", got)
	}
}
