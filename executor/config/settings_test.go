package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/space"
)

func parse(t *testing.T, text string) *Settings {
	t.Helper()
	s, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// config.example.toml has every key with its default.
func TestExampleHasDefaults(t *testing.T) {
	text, err := os.ReadFile("../../config.example.toml")
	if err != nil {
		t.Fatal(err)
	}
	active := regexp.MustCompile(`(?m)^#([a-z_]+ = |\[\[)`).ReplaceAllString(string(text), "$1")
	example := parse(t, active)
	var perImage Resolved
	example.Defaults.PerImage.applyTo(&perImage)
	if diff := cmp.Diff(builtIn("qemu:///session", "bash"), perImage, cmp.AllowUnexported(Resolved{})); diff != "" {
		t.Errorf("config.example.toml differs from the built-in defaults (-built-in +example):\n%s", diff)
	}
	host := hostDefaults()
	host.AllowedImages, host.AllowedJobVariables, host.LogFormat = []string{}, []string{}, "text"
	example.Defaults.PerImage = PerImage{}
	if diff := cmp.Diff(host, example.Defaults, cmp.AllowUnexported(Defaults{})); diff != "" {
		t.Errorf("config.example.toml differs from the built-in defaults (-built-in +example):\n%s", diff)
	}
	serve := serveDefaults()
	serve.NestingAuthorizedKeys = []string{}
	if diff := cmp.Diff(serve, example.Serve); diff != "" {
		t.Errorf("config.example.toml differs from the built-in defaults (-built-in +example):\n%s", diff)
	}
	if limit := example.Images[0].IdleLimit(); limit != defaultIdleTime || example.Images[0].IdleMachines != 0 {
		t.Errorf("idle machines of the example: %d, %s", example.Images[0].IdleMachines, limit)
	}
	if len(example.Images) != 1 || example.Images[0].Trusted || example.Images[0].Image != "" {
		t.Errorf("image section: %+v", example.Images)
	}
	for _, typ := range []reflect.Type{reflect.TypeFor[Defaults](), reflect.TypeFor[Section](), reflect.TypeFor[Serve]()} {
		for _, key := range tomlKeys(typ) {
			if !regexp.MustCompile(`(?m)^#` + key + ` = `).Match(text) {
				t.Errorf("config.example.toml does not show %q", key)
			}
		}
	}
}

// The settings that config.example.toml says an image section may have are those it may.
func TestExampleSaysWhatImagesMayHave(t *testing.T) {
	text, err := os.ReadFile("../../config.example.toml")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "can also appear in an [[image]] section")
	if !found {
		t.Fatal("config.example.toml does not say which settings an [[image]] section may have")
	}
	rest, _, _ = strings.Cut(rest, "\n#[[image]]")
	var named []string
	for _, m := range regexp.MustCompile(`(?m)^#([a-z_]+) = `).FindAllStringSubmatch(rest, -1) {
		named = append(named, m[1])
	}
	want := tomlKeys(reflect.TypeFor[PerImage]())
	slices.Sort(named)
	slices.Sort(want)
	if diff := cmp.Diff(want, named); diff != "" {
		t.Errorf("settings of an image section (-code +config.example.toml):\n%s", diff)
	}
}

// docs/ names every setting, and no setting that does not exist.
func TestDocsNameEverySetting(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("%v, %v", pages, err)
	}
	var docs strings.Builder
	for _, page := range pages {
		if filepath.Base(page) == "settings.md" {
			continue // made from config.example.toml
		}
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		docs.Write(text)
	}
	known := slices.Concat(tomlKeys(reflect.TypeFor[Defaults]()), tomlKeys(reflect.TypeFor[Section]()), tomlKeys(reflect.TypeFor[Serve]()))
	for _, key := range known {
		if !regexp.MustCompile("`" + key + "\\b").MatchString(docs.String()) {
			t.Errorf("no page in docs/ names the setting `%s`", key)
		}
	}
	aliases := tomlKeys(reflect.TypeFor[aliases]())
	for _, found := range regexp.MustCompile("[Ss]ettings? `([a-z_]+)").FindAllStringSubmatch(docs.String(), -1) {
		if !slices.Contains(known, found[1]) && !slices.Contains(aliases, found[1]) {
			t.Errorf("docs/ speak of a setting `%s`, which is none", found[1])
		}
	}
}

// docs/jobs.md names every variable by which a job may choose, and no other.
func TestJobsPageNamesEveryVariable(t *testing.T) {
	page, err := os.ReadFile("../../docs/jobs.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`SARDINE_[A-Z_]+`).FindAllString(string(page), -1)
	for _, name := range named {
		if !slices.Contains(jobVariables, name) {
			t.Errorf("docs/jobs.md names %s, which is no variable of jobs", name)
		}
	}
	for _, name := range jobVariables {
		if !slices.Contains(named, name) {
			t.Errorf("docs/jobs.md does not name %s", name)
		}
	}
}

func TestStorageReserve(t *testing.T) {
	for text, want := range map[string]space.Reserve{
		"":                          {Bytes: 1 << 30, Percent: 5},
		"storage_reserve = 'auto'":  {Bytes: 1 << 30, Percent: 5},
		"storage_reserve = '10GiB'": {Bytes: 10 << 30},
		"storage_reserve = '2.5 %'": {Percent: 2.5},
		"storage_reserve = '0'":     {},
	} {
		if got := space.Reserve(parse(t, "[defaults]\n"+text).Defaults.StorageReserve); got != want {
			t.Errorf("%s: %+v, want %+v", text, got, want)
		}
	}
	if small, large := space.DefaultReserve.Of(10<<30), space.DefaultReserve.Of(100<<30); small != 1<<30 || large != 5<<30 {
		t.Errorf("%d of 10 GiB, %d of 100 GiB", small, large)
	}
}

func TestBadSettingsSayWhere(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"unknown key", "[defaults]\nconect = 'x'", `line 2: unknown key "defaults.conect" (did you mean "connect"?)`},
		{"unknown table", "[default]\nconnect = 'x'", `line 1: unknown key "default" (did you mean "defaults"?)`},
		{"key outside of a table", "timeout = '5m'", `line 1: unknown key "timeout"`},
		{"key outside [defaults]", "storage = '/srv'", `line 1: unknown key "storage" (it belongs in [defaults])`},
		{"key of the host in an image's section", "[[image]]\nmatch = 'x'\nslots = 2", `line 3: unknown key "image.slots" (it belongs in [defaults])`},
		{"unknown key of an image", "[[image]]\nmatch = 'x'\ntrustd = true", `line 3: unknown key "image.trustd" (did you mean "trusted"?)`},
		{"no similar key", "[defaults]\nzzzzzzzz = 1", `line 2: unknown key "defaults.zzzzzzzz"`},
		{"not TOML", "[defaults]\nconnect = ", "line 2: "},
		{"wrong type", "[defaults]\nconnect = 7", "line 2: "},
		{"bad duration", "[defaults]\ntimeout = 'soon'", "line 2: "},
		{"zero timeout", "[defaults]\ntimeout = '0s'", "timeout must be greater than 0"},
		{"zero queue_timeout", "[defaults]\nqueue_timeout = '0s'", "queue_timeout must be greater than 0"},
		{"zero pull_stall_timeout", "[defaults]\npull_stall_timeout = '0s'", "pull_stall_timeout is 0s: want at least 1s"},
		{"bad size", "[defaults]\nmemory = 'lots'", "line 2: "},
		{"negative size", "[defaults]\nmemory = '-1'", "line 2: "},
		{"bad reserve", "[defaults]\nstorage_reserve = 'some'", "line 2: "},
		{"negative reserve", "[defaults]\nstorage_reserve = '-1GiB'", "line 2: "},
		{"negative share", "[defaults]\nstorage_reserve = '-5%'", "want auto, a size such as 10GiB"},
		{"the whole disk", "[defaults]\nstorage_reserve = '100%'", "want auto, a size such as 10GiB"},
		{"no number", "[defaults]\nstorage_reserve = 'NaN%'", "want auto, a size such as 10GiB"},
		{"reserve for an image", "[[image]]\nmatch = 'x'\nstorage_reserve = '5%'", "storage_reserve"},
		{"negative count", "[defaults]\ncpus = -1", "cpus is -1"},
		{"bad word for a count", "[defaults]\ncpus = 'many'", `"many" is neither a number nor "auto"`},
		{"bad job variable", "[defaults]\nallowed_job_variables = ['PATH']", `"PATH" is none of SARDINE_CPUS`},
		{"bad cache", "[[image]]\nmatch = 'x'\ncache = 'yes'", `cache is "yes": want none, disk or share`},
		{"tiny cache", "[defaults]\ncache_size = '1MiB'", "cache_size is 1048576 bytes"},
		{"size of a cache for an image", "[[image]]\nmatch = 'x'\ncache_size = '1GiB'", "cache_size"},
		{"bad log level", "[defaults]\nlog_level = 'chatty'", "line 2: "},
		{"bad log format", "[defaults]\nlog_format = 'xml'", `log_format is "xml"`},
		{"negative time", "[defaults]\nkeep_on_failure = '-1m'", "is negative"},
		{"bad runner binary", "[defaults]\nrunner_binary = 'gitlab-runner'", "want auto, guest, off or an absolute path"},
		{"relative script", "[defaults]\nprepare_script = 'x.sh'", "want an absolute path"},
		{"bad policy", "[defaults]\npull_policy = 'sometimes'", `pull_policy is "sometimes": want always, if-not-present or never`},
		{"bad policy in a list", "[defaults]\npull_policy = ['always', 'x']", `pull_policy is "x"`},
		{"no policy", "[defaults]\npull_policy = []", "allows nothing"},
		{"bad accel", "[defaults]\naccel = 'hvf'", `accel is "hvf"`},
		{"bad omit_backingstore", "[defaults]\nomit_backingstore = 'maybe'", `omit_backingstore is "maybe": want auto, yes or no`},
		{"relative template", "[[image]]\nmatch = 'mac'\ndomain = 'mac.xml'", `domain is "mac.xml": want an absolute path`},
		{"domain in [defaults]", "[defaults]\ndomain = '/mac.xml'", `unknown key "defaults.domain"`},
		{"old and new name", "[defaults]\nvmdir = '/a'\nimage_dir = '/b'", "vmdir is the old name of image_dir"},
		{"old name outside of [defaults]", "[[image]]\nmatch = 'x'\nvmdir = '/a'", `line 3: unknown key "image.vmdir"`},
		{"bad shell", "[[image]]\nmatch = 'win'\nshell = 'cmd'", `shell is "cmd"`},
		{"relative directory", "[defaults]\nguest_builds_dir = 'builds'", "want an absolute path"},
		{"image without match", "[[image]]\ntrusted = true", "no match"},
		{"invalid match", "[[image]]\nmatch = '[x'", "not a glob"},
		{"invalid allowed_images", "[defaults]\nallowed_images = ['{']", "not a glob"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Parse([]byte(test.text))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want …%s…", err, test.want)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %v", err)
			}
		})
	}
}

func TestLoadLooksInOrder(t *testing.T) {
	dir := t.TempDir()
	write := func(name, image string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("[defaults]\nimage = '"+image+"'"), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(dir, "xdg"))
	explicit, named := write("explicit.toml", "explicit"), write("named.toml", "named")
	write("xdg/gitlab-sardine-executor/config.toml", "home")

	load := func(path string) string {
		s, err := Load(path)
		if err != nil {
			t.Fatal(err)
		}
		return s.Defaults.Image
	}
	if got := load(""); got != "home" {
		t.Errorf("without flag and variable: %q", got)
	}
	t.Setenv(FileEnv, named)
	if got := load(""); got != "named" {
		t.Errorf("with the variable: %q", got)
	}
	if got := load(explicit); got != "explicit" {
		t.Errorf("with the flag: %q", got)
	}
	if _, err := Load(filepath.Join(dir, "none.toml")); !errors.Is(err, ErrSettings) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that was named and is not there: %v", err)
	}
}

func TestLongestPatternWins(t *testing.T) {
	s := parse(t, `
[defaults]
timeout = "1m"
username = "root"
[[image]]
match = "registry.example.com/**"
timeout = "2m"
[[image]]
match = "registry.example.com/vms/debian:*"
image = "registry.example.com/mirror/debian:12"
shell = "sh"
[[image]]
match = "debian:*"
trusted = true
`)
	for _, test := range []struct {
		image, want string
		timeout     time.Duration
		shell       string
		trusted     bool
	}{
		{"registry.example.com/vms/debian:12", "registry.example.com/mirror/debian:12", time.Minute, "sh", false},
		{"registry.example.com/vms/fedora:42", "registry.example.com/vms/fedora:42", 2 * time.Minute, "bash", false},
		{"other.example.com/x:1", "other.example.com/x:1", time.Minute, "bash", false},
		{"debian:12", "debian:12", time.Minute, "bash", true},
	} {
		got := s.For(test.image)
		if got.Image != test.want || got.Timeout != test.timeout || got.Shell != test.shell || got.Trusted != test.trusted {
			t.Errorf("%s: got image %s, timeout %v, shell %s, trusted %v", test.image, got.Image, got.Timeout, got.Shell, got.Trusted)
		}
	}
}

// Resolved has a field for each setting of an image, of a type that takes its value.
func TestResolvedHasEverySetting(t *testing.T) {
	table, resolved := reflect.TypeFor[PerImage](), reflect.TypeFor[Resolved]()
	for i := range table.NumField() {
		setting := table.Field(i)
		field, ok := resolved.FieldByName(setting.Name)
		if !ok || !setting.Type.Elem().ConvertibleTo(field.Type) {
			t.Errorf("Resolved has no field %s for a %s", setting.Name, setting.Type.Elem())
		}
	}
}

func TestAliases(t *testing.T) {
	s := parse(t, "[defaults]\nstorage = '/s'\nocidir = '/o'\nvmdir = '/v'\nclonedir = '/c'\ncachedir = '/k'")
	dirs, err := s.Dirs()
	want := Dirs{Layouts: "/o", Store: "/v", Overlays: "/c", Jobs: "/s/jobs", Caches: "/k", Tools: "/s/tools", Consoles: "/s/consoles"}
	if err != nil || dirs != want {
		t.Errorf("got %+v, %v; want %+v", dirs, err, want)
	}
	var names []string
	for _, alias := range s.Aliases() {
		names = append(names, alias.Old+" "+alias.New)
	}
	if diff := cmp.Diff([]string{"ocidir layout_dir", "vmdir image_dir", "clonedir overlay_dir", "cachedir cache_dir"}, names); diff != "" {
		t.Error(diff)
	}
	if used := parse(t, "[defaults]\nlayout_dir = '/o'\ncache_dir = '/k'").Aliases(); len(used) > 0 {
		t.Errorf("new names taken for old ones: %v", used)
	}
}

func TestAllowedImages(t *testing.T) {
	s := parse(t, "[defaults]\nallowed_images = ['registry.example.com/vms/*:*', 'debian:*', 'oci:/srv/images/**']")
	for image, want := range map[string]bool{
		"registry.example.com/vms/a:1":       true,
		"registry.example.com/vms/deep/a:1":  false,
		"registry.example.com/vms/../x/a:1":  false,
		"registry.example.com.evil/vms/a:1":  false,
		"evil.example.com/registry/vms/a:1":  false,
		"debian:12":                          true,
		"docker.io/library/debian:12":        false, // not as it was allowed
		"oci:/srv/images/debian:12":          true,
		"oci:/etc/shadow":                    false,
		"oci:/srv/images/../../etc/shadow:1": false,
		"":                                   false,
	} {
		if got := s.Allowed(image); got != want {
			t.Errorf("%q: allowed is %v, want %v", image, got, want)
		}
	}
	if everything := parse(t, ""); !everything.Allowed("any.example.com/x:1") || everything.AllowsLocal("oci:/srv/images/x") {
		t.Error("without allowed_images every registry is allowed, and no layout")
	}
}

// A digest may be that of any manifest in the repository: the tag beside it does not
// count, and a pattern for tags matches no digest.
func TestMatchImageWithDigest(t *testing.T) {
	sum := "@sha256:" + strings.Repeat("12", 32)
	for _, test := range []struct {
		image   string
		matches []string
		not     []string
	}{
		{
			image:   "registry.example.com/vms/debian:12" + sum,
			matches: []string{"registry.example.com/vms/debian" + sum, "registry.example.com/vms/debian@*", "registry.example.com/vms/debian*", "registry.example.com/**", "*.example.com/vms/*"},
			not: []string{
				"registry.example.com/vms/debian:12*", "registry.example.com/vms/debian:*", "registry.example.com/vms/*:*", "registry.example.com/vms/*:12*",
				"registry.example.com/vms/debian?sha256:*", "registry.example.com/vms/debian", "registry.example.com/vms/debian:12" + sum, "registry.example.com/vms/debian:12@*",
			},
		},
		{image: "docker://registry.example.com/vms/debian:12" + sum, matches: []string{"registry.example.com/vms/debian@*"}, not: []string{"docker://**", "docker:**"}},
		{image: "registry.example.com/vms/debian" + sum, matches: []string{"registry.example.com/vms/debian@*"}, not: []string{"registry.example.com/vms/debian*:12*"}},
		{image: "registry.example.com:5000/vms/debian:12" + sum, matches: []string{"registry.example.com:5000/**", "registry.example.com:*/vms/debian@*"}, not: []string{"registry.example.com/**", "registry.example.com:5000/vms/debian:12*"}},
		{image: "REGISTRY.example.com/vms/debian:12" + sum, not: []string{"registry.example.com/**"}},
		{image: "debian:12" + sum, matches: []string{"debian@*", "debian*", "docker.io/library/debian@*"}, not: []string{"debian:*", "docker.io/library/debian:*"}},
		{image: "docker.io/library/debian:12" + sum, matches: []string{"debian@*", "docker.io/**"}, not: []string{"debian:*", "library/**"}},
		{image: "index.docker.io/vms/debian:12" + sum, matches: []string{"vms/debian@*", "docker.io/vms/*"}, not: []string{"index.docker.io/**", "vms/debian:*"}},
		// Without its registry the name would mean another registry.
		{image: "docker.io/localhost/debian" + sum, matches: []string{"docker.io/localhost/*"}, not: []string{"localhost/**"}},
		{image: "docker.io/registry.example.com/debian" + sum, matches: []string{"docker.io/**"}, not: []string{"registry.example.com/**"}},
		{image: "oci:/srv/images/debian" + sum, matches: []string{"oci:/srv/images/debian@*", "oci:/srv/images/*"}, not: []string{"oci:/srv/images/debian:*"}},
	} {
		for _, pattern := range test.matches {
			if !matchImage(pattern, test.image) {
				t.Errorf("%s does not match %s", pattern, test.image)
			}
		}
		for _, pattern := range test.not {
			if matchImage(pattern, test.image) {
				t.Errorf("%s matches %s", pattern, test.image)
			}
		}
	}
	const tagOnly = "registry.example.com/vms/debian:12*"
	s := parse(t, "[defaults]\nallowed_images = ['"+tagOnly+"']\n[[image]]\nmatch = '"+tagOnly+"'\ntrusted = true")
	for image, want := range map[string]bool{"registry.example.com/vms/debian:12.4": true, "registry.example.com/vms/debian:12" + sum: false} {
		if s.Allowed(image) != want || s.For(image).Trusted != want {
			t.Errorf("%s: allowed is %v, trusted %v, want %v", image, s.Allowed(image), s.For(image).Trusted, want)
		}
	}
}

// Who wins: image section > image > [defaults].
func TestLogin(t *testing.T) {
	image := oci.GuestConfig{Users: []oci.User{{Username: "vagrant", Password: "v"}, {Username: "second", Password: "2"}}}
	silent := oci.GuestConfig{}
	const defaults = "[defaults]\nusername = 'root'\npassword = 'r'\n[[image]]\nmatch = '**'\n"
	for _, test := range []struct {
		name, toml     string
		guest          oci.GuestConfig
		user, password string
	}{
		{"no login", "", silent, "", ""},
		{"the defaults", defaults, silent, "root", "r"},
		{"the image over [defaults]", defaults, image, "vagrant", "v"},
		{"the section over the image", defaults + "username = 'ci'\npassword = 'c'", image, "ci", "c"},
		{"the section names a user of the image", defaults + "username = 'second'", image, "second", "2"},
		{"the section has another password", defaults + "password = 'x'", image, "vagrant", "x"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := parse(t, test.toml).For("registry.example.com/a:1").Login(test.guest)
			if got.User != test.user || got.Password != test.password {
				t.Errorf("got %s/%s, want %s/%s", got.User, got.Password, test.user, test.password)
			}
		})
	}
}

// The directories of a guest depend on its shell, and tell its system.
func TestGuestDirs(t *testing.T) {
	for _, test := range []struct {
		text          string
		builds, cache string
		windows       bool
	}{
		{"", "/var/tmp/builds", "/var/tmp/cache", false},
		{"shell = 'pwsh'", "/var/tmp/builds", "/var/tmp/cache", false},
		{"shell = 'powershell'", `C:\builds`, `C:\cache`, true},
		{"shell = 'powershell'\nguest_builds_dir = 'd:/b'", `d:/b`, `C:\cache`, true},
		{"shell = 'pwsh'\nguest_builds_dir = 'C:\\b'\nguest_cache_dir = 'C:\\c'", `C:\b`, `C:\c`, true},
	} {
		for _, table := range []string{"[defaults]\n", "[[image]]\nmatch = 'win:*'\n"} {
			got := parse(t, table+test.text).For("win:11")
			if got.GuestBuildsDir != test.builds || got.GuestCacheDir != test.cache || got.Windows() != test.windows {
				t.Errorf("%s%s: %s, %s, Windows: %v", table, test.text, got.GuestBuildsDir, got.GuestCacheDir, got.Windows())
			}
		}
	}
	for _, test := range []struct{ text, want string }{
		{"guest_builds_dir = 'C:\\b'", "a guest with the shell bash has no drives"},
		{"guest_cache_dir = 'C:\\b'", "a guest with the shell bash has no drives"},
		{"shell = 'powershell'\nguest_builds_dir = '/builds'", "the shell powershell runs on Windows"},
		{"shell = 'pwsh'\nguest_builds_dir = 'C:\\b'", "want two paths of one system"},
		{"shell = 'powershell'\nguest_builds_dir = 'C:b'", "want an absolute path"},
		{"shell = 'powershell'\nguest_builds_dir = '\\b'", "want an absolute path"},
	} {
		for _, table := range []string{"[defaults]\n", "[[image]]\nmatch = 'win:*'\n"} {
			if _, err := Parse([]byte(table + test.text)); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s%s: got %v, want …%s…", table, test.text, err, test.want)
			}
		}
	}
	// Two tables that are fine alone can contradict each other.
	text := "[defaults]\nguest_builds_dir = '/builds'\n[[image]]\nmatch = 'win:*'\nshell = 'powershell'"
	if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), `[[image]] match = "win:*": guest_builds_dir is "/builds"`) {
		t.Errorf("got %v", err)
	}
}

func TestPasswords(t *testing.T) {
	s := parse(t, "[defaults]\npassword = 'a'\n[[image]]\nmatch = 'x'\npassword = 'b'\n[[image]]\nmatch = 'y'\npassword = ''\n[[image]]\nmatch = 'z'")
	if got := s.Passwords(); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("got %q", got)
	}
}

func TestHostAccess(t *testing.T) {
	s := parse(t, "[defaults]\nhost_access = true\n[[image]]\nmatch = 'a/**'\nhost_access = false")
	if !s.For("b/c:1").HostAccess || s.For("a/b:1").HostAccess || parse(t, "").For("a").HostAccess {
		t.Error("host_access is not what the settings say")
	}
	for _, value := range []string{"[443, 5000]", "['443']", "'yes'", "1"} {
		_, err := Parse([]byte("[defaults]\n\nhost_access = " + value))
		if err == nil || !strings.Contains(err.Error(), "line 3: host_access: want true or false") || !strings.Contains(err.Error(), "docs/network.md") {
			t.Errorf("host_access = %s: %v", value, err)
		}
	}
}

func TestFirmwareSetting(t *testing.T) {
	s := parse(t, "[defaults]\nfirmware = 'uefi'\n[[image]]\nmatch = 'a/**'\nfirmware = 'uefi-secure'")
	if got := s.For("b:1").Firmware + " " + s.For("a/b:1").Firmware + " " + parse(t, "").For("b").Firmware; got != "uefi uefi-secure auto" {
		t.Errorf("got %q", got)
	}
	if _, err := Parse([]byte("[defaults]\nfirmware = 'efi'")); err == nil || !strings.Contains(err.Error(), `firmware is "efi": want auto, bios, uefi or uefi-secure`) {
		t.Errorf("a firmware that is not there: %v", err)
	}
}
