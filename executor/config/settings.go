// Package config reads the administrator's settings and resolves them for one image.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/space"
)

// ErrSettings says that the administrator's settings cannot be used.
var ErrSettings = errors.New("settings")

// Settings is the file config.toml as the administrator wrote it.
// config.example.toml lists every key with its default.
type Settings struct {
	// Path is the file that was read; empty if there is none.
	Path     string    `toml:"-"`
	Defaults Defaults  `toml:"defaults"`
	Serve    Serve     `toml:"serve"`
	Images   []Section `toml:"image"`
}

// Defaults is the table [defaults]: the settings of the host, and the settings of
// images without a section of their own.
type Defaults struct {
	// Connect is the URI of libvirt; empty for virsh's default.
	Connect string `toml:"connect"`
	// Storage is the root of all directories. LayoutDir (OCI layouts), ImageDir
	// (unpacked images), OverlayDir and CacheDir (see PerImage.Cache) move parts of it.
	Storage    string `toml:"storage"`
	LayoutDir  string `toml:"layout_dir"`
	ImageDir   string `toml:"image_dir"`
	OverlayDir string `toml:"overlay_dir"`
	CacheDir   string `toml:"cache_dir"`
	// CacheSize is the size of a cache disk. It is a setting of the host because a
	// cache belongs to a project, not to an image.
	CacheSize Bytes `toml:"cache_size"`
	// Image is for jobs that name none.
	Image string `toml:"image"`
	// AllowedImages are globs; an empty list allows every image.
	AllowedImages []string `toml:"allowed_images"`
	// AllowedJobVariables is the subset of [jobVariables] that jobs may set.
	AllowedJobVariables []string `toml:"allowed_job_variables"`
	// Concurrency is the divisor for cpus = "auto"; 0 means the number of host CPUs.
	Concurrency uint `toml:"concurrency"`
	// Slots is the number of machines that may run at once; 0 means no limit.
	Slots uint `toml:"slots"`
	// HostReserve is the memory that machines leave to the host.
	HostReserve Bytes `toml:"host_reserve"`
	// StorageReserve is the room that pulls leave free on the file system of the images.
	StorageReserve Reserve `toml:"storage_reserve"`
	// QueueTimeout is how long a job waits for room on the host.
	QueueTimeout Duration `toml:"queue_timeout"`
	// PullStallTimeout is how long a pull may go on without progress: 1000 bytes for
	// each second of it.
	PullStallTimeout Duration `toml:"pull_stall_timeout"`
	// LogFile is the administrator's log; LogLevel is debug, info, warn or error;
	// LogFormat is text or json, empty for text.
	LogFile   string     `toml:"log_file"`
	LogLevel  slog.Level `toml:"log_level"`
	LogFormat string     `toml:"log_format"`
	// MetricsTextfile is the file for node_exporter's textfile collector.
	MetricsTextfile string `toml:"metrics_textfile"`

	PerImage
	aliases
}

// Section is one [[image]] table: settings for the images that Match matches.
type Section struct {
	// Match is a glob on the image reference; ** crosses slashes.
	Match string `toml:"match"`
	// Image replaces the image that the job names.
	Image string `toml:"image"`
	// Trusted keeps the parts of the image's domain XML that can harm the host.
	Trusted bool `toml:"trusted"`
	// Architecture of the machines, by Go's name, which may be emulated; empty for the
	// host's.
	Architecture string `toml:"architecture"`
	// Domain is the path of the administrator's domain XML, which replaces the
	// image's. It is trusted.
	Domain string `toml:"domain"`
	// IdleMachines is how many machines of each image serve keeps ready; IdleTime is the age
	// at which it replaces them, nil for the default. See [Section.IdleLimit].
	IdleMachines uint      `toml:"idle_machines"`
	IdleTime     *Duration `toml:"idle_time"`

	PerImage
}

// PerImage holds the settings that an image section can override; nil means that the
// table does not set it. [Resolved] has a field of the same name for each of them.
type PerImage struct {
	Timeout             *Duration `toml:"timeout"`
	WaitFor             *string   `toml:"wait_for"`
	LoginGrace          *Duration `toml:"login_grace"`
	PullPolicies        *Policies `toml:"pull_policy"`
	AllowedPullPolicies *Policies `toml:"allowed_pull_policies"`
	Network             *string   `toml:"network"`
	HostAccess          *bool     `toml:"host_access"`
	OmitBackingStore    *string   `toml:"omit_backingstore"`
	Accel               *string   `toml:"accel"`
	Firmware            *string   `toml:"firmware"`
	CPUs                *CPUs     `toml:"cpus"`
	Memory              *Bytes    `toml:"memory"`
	Disk                *Bytes    `toml:"disk"`
	MaxCPUs             *uint     `toml:"max_cpus"`
	MaxMemory           *Bytes    `toml:"max_memory"`
	MaxDisk             *Bytes    `toml:"max_disk"`
	Username            *string   `toml:"username"`
	Password            *string   `toml:"password"`
	IdentityFile        *string   `toml:"identity_file"`
	SSHAgent            *bool     `toml:"ssh_agent"`
	Shell               *string   `toml:"shell"`
	GuestBuildsDir      *string   `toml:"guest_builds_dir"`
	GuestCacheDir       *string   `toml:"guest_cache_dir"`
	Cache               *string   `toml:"cache"`
	PrepareScript       *string   `toml:"prepare_script"`
	RunnerBinary        *string   `toml:"runner_binary"`
	KeepOnFailure       *Duration `toml:"keep_on_failure"`
	MemorySnapshot      *bool     `toml:"memory_snapshot"`
}

// hostDefaults are the defaults of the host's settings.
func hostDefaults() Defaults {
	return Defaults{
		CacheSize:      20 << 30,
		HostReserve:    512 << 20,
		StorageReserve: Reserve(space.DefaultReserve),
		QueueTimeout:   Duration(30 * time.Minute),

		PullStallTimeout: Duration(time.Minute),
	}
}

// The values of settings that other packages ask for by name.
const (
	WaitBoot   = "boot"
	CacheNone  = "none"
	CacheDisk  = "disk"
	CacheShare = "share"
	// UserNetwork needs neither privileges nor setup.
	UserNetwork = "user"
	RunnerAuto  = "auto"
	RunnerGuest = "guest"
	RunnerOff   = "off"
)

// The variables by which the author of a job may choose, if the administrator lists
// them in allowed_job_variables.
const (
	VariableCPUs          = "SARDINE_CPUS"
	VariableMemory        = "SARDINE_MEMORY"
	VariableDisk          = "SARDINE_DISK"
	VariableKeepOnFailure = "SARDINE_KEEP_ON_FAILURE"
)

// jobVariables are all of them.
var jobVariables = []string{VariableCPUs, VariableMemory, VariableDisk, VariableKeepOnFailure}

// Passwords returns the passwords of guests that the settings contain.
func (s *Settings) Passwords() []string {
	var found []string
	add := func(table PerImage) {
		if table.Password != nil && *table.Password != "" {
			found = append(found, *table.Password)
		}
	}
	add(s.Defaults.PerImage)
	for _, section := range s.Images {
		add(section.PerImage)
	}
	return found
}

// Duration is a time in Go's notation: "90s", "5m".
type Duration time.Duration

// UnmarshalText reads a TOML string.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err == nil && v < 0 {
		err = fmt.Errorf("%q is negative", text)
	}
	*d = Duration(v)
	return err
}

// Reserve is a part of a file system: "10GiB", "5%", "0", or "auto" for
// [space.DefaultReserve].
type Reserve space.Reserve

// UnmarshalText reads it from a TOML string.
func (r *Reserve) UnmarshalText(text []byte) error {
	if string(text) == "auto" {
		*r = Reserve(space.DefaultReserve)
		return nil
	}
	number, isPercent := strings.CutSuffix(string(text), "%")
	if !isPercent {
		var size Bytes
		err := size.UnmarshalText(text)
		if err == nil && size < 0 {
			err = fmt.Errorf("%q is negative", text)
		}
		*r = Reserve{Bytes: int64(size)}
		return err
	}
	percent, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil || !(percent >= 0 && percent < 100) {
		return fmt.Errorf("%q: want auto, a size such as 10GiB, or a percentage from 0%% to less than 100%%", text)
	}
	*r = Reserve{Percent: percent}
	return nil
}

// Bytes is a size: "512MiB", "4GiB" (1024 based, also without the i).
type Bytes int64

// UnmarshalText reads a TOML string.
func (b *Bytes) UnmarshalText(text []byte) error {
	v, err := units.RAMInBytes(string(text))
	*b = Bytes(v)
	return err
}

// CPUs is a number of vCPUs: 0 for what the image asks for, or [AutoCPUs].
type CPUs int

// AutoCPUs ("auto") divides the host's CPUs by the setting concurrency.
const AutoCPUs CPUs = math.MinInt32

// UnmarshalText reads the word "auto"; TOML integers do not get here.
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

// UnmarshalText reads a single policy.
func (p *Policies) UnmarshalText(text []byte) error {
	*p = Policies{oci.PullPolicy(text)}
	return nil
}
