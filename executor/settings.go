package executor

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/agext/levenshtein"
	"github.com/bmatcuk/doublestar/v4"
	"github.com/docker/go-units"
	"github.com/pelletier/go-toml/v2"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/guestssh"
)

// ErrSettings: the administrator's settings cannot be used.
var ErrSettings = errors.New("settings")

// ConfigEnv names the settings file, after --config and before the usual places.
const ConfigEnv = "GITLAB_SARDINE_EXECUTOR_CONFIG"

// Settings are the administrator's: the file config.toml as it is written.
// config.example.toml lists every key with its default.
type Settings struct {
	// Path of the file they were read from; empty if there was none.
	Path     string         `toml:"-"`
	Defaults DefaultsTable  `toml:"defaults"`
	Images   []ImageSection `toml:"image"`
}

// DefaultsTable is [defaults]: what holds for the whole host, and what holds for
// every image that has no section of its own.
type DefaultsTable struct {
	// Connect is the URI of libvirt; empty for virsh's default.
	Connect string `toml:"connect"`
	// Storage is the directory for everything that is kept. OCIDir (layouts),
	// VMDir (unpacked images) and CloneDir (overlays) take parts of it elsewhere.
	Storage  string `toml:"storage"`
	OCIDir   string `toml:"ocidir"`
	VMDir    string `toml:"vmdir"`
	CloneDir string `toml:"clonedir"`
	// CacheDir is the directory for what jobs leave to later jobs (PerImage.Cache),
	// CacheSize the size of a cache disk. These are the host's and not an image's: a
	// cache belongs to a project.
	CacheDir  string `toml:"cachedir"`
	CacheSize *Bytes `toml:"cache_size"`
	// Image for jobs that name none.
	Image string `toml:"image"`
	// AllowedImages are globs; none means that every image is allowed.
	AllowedImages []string `toml:"allowed_images"`
	// AllowedJobVariables are those of [JobVariables] by which a job may choose.
	AllowedJobVariables []string `toml:"allowed_job_variables"`
	// Concurrency is how many machines the host is for; 0: one for each CPU.
	Concurrency uint `toml:"concurrency"`
	// Slots is the number of machines that may run at once; 0: no limit.
	Slots uint `toml:"slots"`
	// HostReserve is the memory that machines leave to the host.
	HostReserve *Bytes `toml:"host_reserve"`
	// QueueTimeout is how long a job waits for room on the host.
	QueueTimeout *Duration `toml:"queue_timeout"`
	// LogFile is the administrator's log; LogLevel is debug, info, warn or error;
	// LogFormat is text or json, empty for text.
	LogFile   string     `toml:"log_file"`
	LogLevel  slog.Level `toml:"log_level"`
	LogFormat string     `toml:"log_format"`
	// MetricsTextfile is the file for node_exporter's textfile collector.
	MetricsTextfile string `toml:"metrics_textfile"`

	PerImage
}

// ImageSection is one [[image]]: settings for the images that Match matches.
type ImageSection struct {
	// Match is a glob on the image reference; ** crosses slashes.
	Match string `toml:"match"`
	// Image is used in place of the one that the job names.
	Image string `toml:"image"`
	// Trusted lets the domain XML of the image bring what could harm the host.
	Trusted bool `toml:"trusted"`
	// Domain is the path of a domain XML of the administrator's, in place of the
	// images' own. It is trusted.
	Domain string `toml:"domain"`

	PerImage
}

// PerImage are the settings that an image section can override. nil is "not
// set"; after [Settings.For] none is nil.
type PerImage struct {
	Timeout        *Duration `toml:"timeout"`
	PullPolicy     *Policies `toml:"pull_policy"`
	AllowedPolicy  *Policies `toml:"allowed_pull_policies"`
	Network        *string   `toml:"network"`
	OmitBacking    *string   `toml:"omit_backingstore"`
	Accel          *string   `toml:"accel"`
	CPUs           *CPUs     `toml:"cpus"`
	Memory         *Bytes    `toml:"memory"`
	Disk           *Bytes    `toml:"disk"`
	MaxCPUs        *uint     `toml:"max_cpus"`
	MaxMemory      *Bytes    `toml:"max_memory"`
	MaxDisk        *Bytes    `toml:"max_disk"`
	Username       *string   `toml:"username"`
	Password       *string   `toml:"password"`
	IdentityFile   *string   `toml:"identity_file"`
	SSHAgent       *bool     `toml:"ssh_agent"`
	Shell          *string   `toml:"shell"`
	GuestBuildsDir *string   `toml:"guest_builds_dir"`
	GuestCacheDir  *string   `toml:"guest_cache_dir"`
	Cache          *string   `toml:"cache"`
	PrepareScript  *string   `toml:"prepare_script"`
	RunnerBinary   *string   `toml:"runner_binary"`
	KeepOnFailure  *Duration `toml:"keep_on_failure"`
	MemorySnapshot *bool     `toml:"memory_snapshot"`
}

// withBuiltIn are the settings with the defaults of the defaults. Where guests keep
// their files depends on their shell.
func (p PerImage) withBuiltIn(connect string) PerImage {
	all := p.over(builtIn(connect))
	builds, cache := guestDirs(*all.Shell)
	return p.over(PerImage{GuestBuildsDir: &builds, GuestCacheDir: &cache}.over(all))
}

// builtIn are the defaults of the defaults.
func builtIn(connect string) PerImage {
	network := vm.UserNetwork
	if (strings.HasPrefix(connect, "qemu:///system") || connect == "") && os.Geteuid() == 0 {
		network = "default"
	}
	return PerImage{
		Timeout:        ptr(Duration(5 * time.Minute)),
		PullPolicy:     &Policies{oci.PullAlways},
		AllowedPolicy:  &Policies{},
		Network:        &network,
		OmitBacking:    ptr(vm.OmitAuto),
		Accel:          ptr(vm.AccelAuto),
		CPUs:           ptr(CPUs(0)),
		Memory:         ptr(Bytes(0)),
		Disk:           ptr(Bytes(0)),
		MaxCPUs:        ptr(uint(0)),
		MaxMemory:      ptr(Bytes(0)),
		MaxDisk:        ptr(Bytes(oci.DefaultMaxDisk)),
		Username:       ptr(""),
		Password:       ptr(""),
		IdentityFile:   ptr(""),
		SSHAgent:       ptr(false),
		Shell:          ptr("bash"),
		GuestBuildsDir: ptr("/var/tmp/builds"),
		GuestCacheDir:  ptr("/var/tmp/cache"),
		Cache:          ptr(cacheNone),
		PrepareScript:  ptr(""),
		RunnerBinary:   ptr(runnerAuto),
		KeepOnFailure:  ptr(Duration(0)),
		MemorySnapshot: ptr(false),
	}
}

func ptr[T any](v T) *T { return &v }

// over returns the settings in which p's values win over base's.
func (p PerImage) over(base PerImage) PerImage {
	from, to := reflect.ValueOf(p), reflect.ValueOf(&base).Elem()
	for i := range from.NumField() {
		if !from.Field(i).IsNil() {
			to.Field(i).Set(from.Field(i))
		}
	}
	return base
}

// The defaults of the settings of the host that have one beside nothing.
const (
	defaultHostReserve  = Bytes(512 << 20)
	defaultQueueTimeout = Duration(30 * time.Minute)
	defaultCacheSize    = Bytes(20 << 30)
)

// cacheSize is the size of a cache disk.
func (t DefaultsTable) cacheSize() int64 {
	if t.CacheSize == nil {
		return int64(defaultCacheSize)
	}
	return int64(*t.CacheSize)
}

// admission is when the host has room for another machine.
func (t DefaultsTable) admission() vm.Admission {
	reserve, timeout := defaultHostReserve, defaultQueueTimeout
	if t.HostReserve != nil {
		reserve = *t.HostReserve
	}
	if t.QueueTimeout != nil {
		timeout = *t.QueueTimeout
	}
	return vm.Admission{Slots: t.Slots, Reserve: int64(reserve), Timeout: time.Duration(timeout)}
}

// Duration is a time in Go's notation: "90s", "5m".
type Duration time.Duration

// UnmarshalText reads it from a TOML string.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err == nil && v < 0 {
		err = fmt.Errorf("%q is less than nothing", text)
	}
	*d = Duration(v)
	return err
}

// Bytes is a size: "512MiB", "4GiB" (1024 based, also without the i).
type Bytes int64

// UnmarshalText reads it from a TOML string.
func (b *Bytes) UnmarshalText(text []byte) error {
	v, err := units.RAMInBytes(string(text))
	*b = Bytes(v)
	return err
}

// CPUs is a number of vCPUs: 0 for what the image asks, or [AutoCPUs].
type CPUs int

// AutoCPUs ("auto") divides the host's CPUs by the setting concurrency.
const AutoCPUs CPUs = math.MinInt32

// UnmarshalText reads the word.
func (c *CPUs) UnmarshalText(text []byte) error {
	if string(text) != "auto" {
		return fmt.Errorf("%q is neither a number nor \"auto\"", text)
	}
	*c = AutoCPUs
	return nil
}

// Policies are pull policies in the order in which they are tried. In TOML, as
// in GitLab Runner's own settings, they are an array, or a string for one.
type Policies []oci.PullPolicy

// UnmarshalText reads a single one.
func (p *Policies) UnmarshalText(text []byte) error {
	*p = Policies{oci.PullPolicy(text)}
	return nil
}

func (p Policies) check() error {
	for _, policy := range p {
		switch policy {
		case oci.PullAlways, oci.PullIfNotPresent, oci.PullNever:
		default:
			return fmt.Errorf("%q is no pull policy: want always, if-not-present or never", policy)
		}
	}
	return nil
}

// configPaths are the places where settings are looked for, first match wins.
func configPaths(explicit string) (paths []string, must bool) {
	if explicit != "" {
		return []string{explicit}, true
	}
	if named := os.Getenv(ConfigEnv); named != "" {
		return []string{named}, true
	}
	if dir, err := os.UserConfigDir(); err == nil {
		paths = append(paths, filepath.Join(dir, "gitlab-sardine-executor", "config.toml"))
	}
	return append(paths, "/etc/gitlab-sardine-executor/config.toml"), false
}

// LoadSettings reads the settings file: explicit if it is not empty, else the
// one that [ConfigEnv] names, else the first that exists of
// ~/.config/gitlab-sardine-executor/config.toml and
// /etc/gitlab-sardine-executor/config.toml. Without any, every setting has its
// default. The error is an [ErrSettings].
func LoadSettings(explicit string) (*Settings, error) {
	paths, must := configPaths(explicit)
	for _, file := range paths {
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) && !must {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSettings, err)
		}
		s, err := ParseSettings(text)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrSettings, file, err)
		}
		s.Path = file
		return s, nil
	}
	return ParseSettings(nil)
}

// ParseSettings reads the text of a settings file. It is strict: a key that
// means nothing is an error, with the nearest key that does.
func ParseSettings(text []byte) (*Settings, error) {
	s := &Settings{}
	if err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(s); err != nil {
		return nil, describeTOML(err)
	}
	for i, section := range s.Images {
		if section.Match == "" {
			return nil, fmt.Errorf("[[image]] number %d has no match = \"GLOB\"", i+1)
		}
	}
	return s, s.check()
}

// describeTOML says where a settings file is wrong, and what may have been meant.
func describeTOML(err error) error {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) && len(strict.Errors) > 0 {
		unknown := strict.Errors[0]
		row, _ := unknown.Position()
		key := unknown.Key()
		text := fmt.Sprintf("line %d: unknown key %q", row, strings.Join(key, "."))
		if nearest := nearestKey(key); nearest != "" {
			text += fmt.Sprintf(" (did you mean %q?)", nearest)
		}
		return errors.New(text)
	}
	var decode *toml.DecodeError
	if errors.As(err, &decode) {
		row, _ := decode.Position()
		return fmt.Errorf("line %d: %w", row, err)
	}
	return err
}

// nearestKey is the key that somebody who wrote key may have meant; empty if
// none is near.
func nearestKey(key []string) string {
	if len(key) == 0 {
		return ""
	}
	written := key[len(key)-1]
	var known []string
	switch {
	case len(key) == 1:
		known = append(tomlKeys(reflect.TypeFor[Settings]()), tomlKeys(reflect.TypeFor[DefaultsTable]())...)
	case key[0] == "defaults":
		known = tomlKeys(reflect.TypeFor[DefaultsTable]())
	default:
		known = tomlKeys(reflect.TypeFor[ImageSection]())
	}
	best, distance := "", len(written)/2+1
	for _, candidate := range known {
		if d := levenshtein.Distance(written, candidate, nil); d < distance {
			best, distance = candidate, d
		}
	}
	return best
}

// tomlKeys are the keys of a table, those of embedded structs included.
func tomlKeys(t reflect.Type) []string {
	var keys []string
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			keys = append(keys, tomlKeys(f.Type)...)
		} else if key := f.Tag.Get("toml"); key != "-" {
			keys = append(keys, key)
		}
	}
	return keys
}

// check finds values that no job could use, before there is one.
func (s *Settings) check() error {
	tables := []struct {
		name string
		PerImage
	}{{"[defaults]", s.Defaults.PerImage}}
	for _, section := range s.Images {
		name := fmt.Sprintf("[[image]] match = %q", section.Match)
		if !doublestar.ValidatePattern(section.Match) {
			return fmt.Errorf("%s: not a glob", name)
		}
		if section.Domain != "" && !filepath.IsAbs(section.Domain) {
			return fmt.Errorf("%s: domain is %q: want an absolute path on this host", name, section.Domain)
		}
		tables = append(tables, struct {
			name string
			PerImage
		}{name, section.PerImage})
	}
	if !slices.Contains([]string{"", "text", "json"}, s.Defaults.LogFormat) {
		return fmt.Errorf("[defaults]: log_format is %q: want text or json", s.Defaults.LogFormat)
	}
	for _, name := range s.Defaults.AllowedJobVariables {
		if !slices.Contains(JobVariables, name) {
			return fmt.Errorf("[defaults]: allowed_job_variables: %q is none of %s", name, strings.Join(JobVariables, ", "))
		}
	}
	if size := s.Defaults.cacheSize(); size < minCacheSize {
		return fmt.Errorf("[defaults]: cache_size is %d bytes: no file system fits in less than %s", size, units.BytesSize(minCacheSize))
	}
	if t := s.Defaults.QueueTimeout; t != nil && *t == 0 {
		return errors.New("[defaults]: queue_timeout is 0: a job could not even look whether there is room (1s is short)")
	}
	for _, pattern := range s.Defaults.AllowedImages {
		if !doublestar.ValidatePattern(pattern) {
			return fmt.Errorf("[defaults]: allowed_images: %q is not a glob", pattern)
		}
	}
	for _, table := range tables {
		if err := table.check(); err != nil {
			return fmt.Errorf("%s: %w", table.name, err)
		}
		if err := table.over(s.Defaults.PerImage).withBuiltIn(s.Defaults.Connect).checkGuestDirs(); err != nil {
			return fmt.Errorf("%s: %w", table.name, err)
		}
	}
	return nil
}

func (p PerImage) check() error {
	for key, policies := range map[string]*Policies{"pull_policy": p.PullPolicy, "allowed_pull_policies": p.AllowedPolicy} {
		if policies != nil {
			if err := policies.check(); err != nil {
				return fmt.Errorf("%s: %w", key, err)
			}
		}
	}
	if p.PullPolicy != nil && len(*p.PullPolicy) == 0 {
		return errors.New("pull_policy: an empty list allows nothing")
	}
	if p.CPUs != nil && *p.CPUs < 0 && *p.CPUs != AutoCPUs {
		return fmt.Errorf("cpus is %d: want a number, 0 for the image's, or \"auto\"", *p.CPUs)
	}
	if p.Timeout != nil && *p.Timeout == 0 {
		return errors.New("timeout is 0: no guest answers in no time")
	}
	if p.RunnerBinary != nil && *p.RunnerBinary != runnerAuto && *p.RunnerBinary != runnerOff && !filepath.IsAbs(*p.RunnerBinary) {
		return fmt.Errorf("runner_binary is %q: want auto, off or an absolute path", *p.RunnerBinary)
	}
	if p.PrepareScript != nil && *p.PrepareScript != "" && !filepath.IsAbs(*p.PrepareScript) {
		return fmt.Errorf("prepare_script is %q: want an absolute path on this host", *p.PrepareScript)
	}
	if p.Accel != nil && !slices.Contains([]string{vm.AccelAuto, vm.AccelKVM, vm.AccelTCG}, *p.Accel) {
		return fmt.Errorf("accel is %q: want auto, kvm or tcg", *p.Accel)
	}
	if p.OmitBacking != nil && !slices.Contains([]string{vm.OmitAuto, vm.OmitYes, vm.OmitNo}, *p.OmitBacking) {
		return fmt.Errorf("omit_backingstore is %q: want auto, yes or no", *p.OmitBacking)
	}
	if p.Cache != nil && !slices.Contains([]string{cacheNone, string(vm.CacheDisk), string(vm.CacheShare)}, *p.Cache) {
		return fmt.Errorf("cache is %q: want none, disk or share", *p.Cache)
	}
	if p.Shell != nil {
		if _, ok := shells[*p.Shell]; !ok {
			return fmt.Errorf("shell is %q: want bash, sh, zsh, pwsh or powershell", *p.Shell)
		}
	}
	for key, dir := range map[string]*string{"guest_builds_dir": p.GuestBuildsDir, "guest_cache_dir": p.GuestCacheDir} {
		if dir != nil && !path.IsAbs(*dir) && !windowsPath.MatchString(*dir) {
			return fmt.Errorf("%s is %q: want an absolute path in the guest", key, *dir)
		}
	}
	return nil
}

// ImageSettings are the settings for the jobs of one image.
type ImageSettings struct {
	PerImage // every field is set
	// Image to use: the one that was asked for or the administrator's substitute.
	Image   string
	Trusted bool
	// Domain is the path of the administrator's domain XML; empty for none.
	Domain string

	section PerImage // what the section of this image says, and nothing else
}

// For is what the settings say about image, a reference as the job has it; empty
// if the job names none. The section whose pattern is the longest of those that
// match wins.
func (s *Settings) For(image string) ImageSettings {
	if image == "" {
		image = s.Defaults.Image
	}
	resolved := ImageSettings{Image: image}
	longest := -1
	for _, section := range s.Images {
		if len(section.Match) > longest && matchImage(section.Match, image) {
			longest = len(section.Match)
			resolved.section = section.PerImage
			resolved.Trusted, resolved.Domain = section.Trusted, section.Domain
			resolved.Image = image
			if section.Image != "" {
				resolved.Image = section.Image
			}
		}
	}
	resolved.PerImage = resolved.section.over(s.Defaults.PerImage).withBuiltIn(s.Defaults.Connect)
	return resolved
}

// passwords are those of guests that stand in the settings.
func (s *Settings) passwords() []string {
	tables := []PerImage{s.Defaults.PerImage}
	for _, section := range s.Images {
		tables = append(tables, section.PerImage)
	}
	var found []string
	for _, table := range tables {
		if table.Password != nil && *table.Password != "" {
			found = append(found, *table.Password)
		}
	}
	return found
}

// Allowed says whether jobs may use image.
func (s *Settings) Allowed(image string) bool {
	if len(s.Defaults.AllowedImages) == 0 {
		return true
	}
	return slices.ContainsFunc(s.Defaults.AllowedImages, func(pattern string) bool { return matchImage(pattern, image) })
}

// allowsLayout says whether jobs may use a layout on this host: only a pattern
// that speaks of layouts can allow that.
func (s *Settings) allowsLayout(image string) bool {
	return slices.ContainsFunc(s.Defaults.AllowedImages, func(pattern string) bool {
		return strings.HasPrefix(pattern, "oci:") && matchImage(pattern, image)
	})
}

// matchImage matches a reference as it was written, and in full: "debian:*" and
// "docker.io/library/debian:*" both match debian:12. A layout is matched by its path
// without its "..".
//
// A reference with a digest is matched as NAME@DIGEST, whichever tag was written
// beside it: the digest is what is pulled, and can be that of any manifest in the
// repository.
func matchImage(pattern, image string) bool {
	ref, err := oci.ParseReference(image)
	if err != nil {
		return false
	}
	full := ref.String()
	switch {
	case ref.Digest() != "":
		return !forTags(pattern) && (doublestar.MatchUnvalidated(pattern, full) || doublestar.MatchUnvalidated(pattern, familiar(full)))
	case ref.IsLayout():
		return doublestar.MatchUnvalidated(pattern, full)
	}
	return doublestar.MatchUnvalidated(pattern, image) || doublestar.MatchUnvalidated(pattern, full)
}

// forTags says whether a pattern is about tags: it has a colon behind its last slash
// and no @. The colon in a digest is not what it means.
func forTags(pattern string) bool {
	last := pattern[strings.LastIndexByte(pattern, '/')+1:]
	return strings.Contains(last, ":") && !strings.Contains(last, "@")
}

// familiar is a reference in full without what is added to one that names no
// registry, unless that would be another image: docker.io/localhost/x is not
// localhost/x.
func familiar(full string) string {
	short := strings.TrimPrefix(strings.TrimPrefix(full, "docker.io/"), "library/")
	if ref, err := oci.ParseReference(short); err != nil || ref.String() != full {
		return full
	}
	return short
}

// Login is how to log in to a guest of an image that says guest: the image's own
// section of the settings wins over the image, and the image over [defaults].
func (s ImageSettings) Login(guest oci.GuestConfig) guestssh.Login {
	login := guestssh.Login{User: *s.Username, Password: *s.Password, IdentityFile: *s.IdentityFile, Agent: *s.SSHAgent}
	if len(guest.Users) == 0 {
		return login
	}
	user := guest.Users[0]
	if name := s.section.Username; name != nil {
		i := slices.IndexFunc(guest.Users, func(u oci.User) bool { return u.Username == *name })
		if i < 0 {
			return login
		}
		user = guest.Users[i]
	}
	login.User = user.Username
	if s.section.Password == nil && user.Password != "" {
		login.Password = user.Password
	}
	return login
}

// Dirs are the directories that the driver works in, all absolute.
type Dirs struct {
	OCI    string // layouts, by repository
	Store  string // unpacked images
	Clones string // overlays
	Jobs   string // what belongs to one job each
	Caches string // what jobs leave to later jobs
	// Consoles holds the console logs of guests that did not come up.
	Consoles string
}

// Dirs of these settings.
func (s *Settings) Dirs() (Dirs, error) {
	root := s.Defaults.Storage
	if root == "" {
		var err error
		if root, err = defaultStorage(); err != nil {
			return Dirs{}, err
		}
	}
	dirs := Dirs{
		OCI:    cmp.Or(s.Defaults.OCIDir, filepath.Join(root, "oci")),
		Store:  cmp.Or(s.Defaults.VMDir, root),
		Clones: cmp.Or(s.Defaults.CloneDir, filepath.Join(root, "clones")),
		Jobs:   filepath.Join(root, "jobs"),
		Caches: cmp.Or(s.Defaults.CacheDir, filepath.Join(root, "caches")),

		Consoles: filepath.Join(root, "consoles"),
	}
	for _, dir := range []*string{&dirs.OCI, &dirs.Store, &dirs.Clones, &dirs.Jobs, &dirs.Caches, &dirs.Consoles} {
		if !filepath.IsAbs(*dir) {
			return Dirs{}, fmt.Errorf("%w: %q is not an absolute path", ErrSettings, *dir)
		}
	}
	return dirs, nil
}

// defaultStorage is /var/lib/gitlab-sardine-executor for root and the user's
// data directory (XDG base directory specification) for others.
func defaultStorage() (string, error) {
	const name = "gitlab-sardine-executor"
	if os.Geteuid() == 0 {
		return filepath.Join("/var/lib", name), nil
	}
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, name), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("%w: no directory for storage: set storage, XDG_DATA_HOME or HOME: %w", ErrSettings, err)
	}
	return filepath.Join(home, ".local", "share", name), nil
}
