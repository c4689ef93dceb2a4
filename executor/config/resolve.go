package config

import (
	"cmp"
	"iter"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/store"
	"gitlab-sardine-executor/vm/guestssh"
)

// Resolved holds the settings for the jobs of one image. Sizes are in bytes; 0 means
// what the image asks for, or no limit beside the host's.
type Resolved struct {
	// Image to use: the one that was asked for, or the administrator's substitute.
	Image string
	// Trusted, Domain and Architecture: see [Section].
	Trusted      bool
	Domain       string
	Architecture string

	Timeout             time.Duration
	WaitFor             string
	LoginGrace          time.Duration
	PullPolicies        []oci.PullPolicy
	AllowedPullPolicies []oci.PullPolicy
	Network             string
	HostAccess          bool
	OmitBackingStore    string
	Accel               string
	Firmware            string
	CPUs                CPUs
	Memory              uint64
	Disk                int64
	MaxCPUs             uint
	MaxMemory           uint64
	MaxDisk             int64
	Username            string
	Password            string
	IdentityFile        string
	SSHAgent            bool
	Shell               string
	GuestBuildsDir      string
	GuestCacheDir       string
	Cache               string
	PrepareScript       string
	RunnerBinary        string
	KeepOnFailure       time.Duration
	MemorySnapshot      bool

	// The image's section, and not [defaults], sets them: they win over the image.
	sectionUsername, sectionPassword bool
}

// builtIn are the defaults for an image with that shell in its guests.
func builtIn(connect, shell string) Resolved {
	r := Resolved{
		Timeout:             5 * time.Minute,
		WaitFor:             WaitBoot,
		LoginGrace:          30 * time.Second,
		PullPolicies:        []oci.PullPolicy{oci.PullAlways},
		AllowedPullPolicies: []oci.PullPolicy{},
		Network:             UserNetwork,
		OmitBackingStore:    "auto",
		Accel:               "auto",
		Firmware:            "auto",
		MaxDisk:             store.DefaultMaxDisk,
		Shell:               shell,
		GuestBuildsDir:      "/var/tmp/builds",
		GuestCacheDir:       "/var/tmp/cache",
		Cache:               CacheNone,
		RunnerBinary:        RunnerAuto,
	}
	if (strings.HasPrefix(connect, "qemu:///system") || connect == "") && os.Geteuid() == 0 {
		r.Network = "default"
	}
	if shell == "powershell" { // which only Windows has
		r.GuestBuildsDir, r.GuestCacheDir = `C:\builds`, `C:\cache`
	}
	return r
}

// For resolves the settings for image, a reference as the job has it; empty if the
// job names none. Of the sections that match, the longest pattern wins.
func (s *Settings) For(image string) Resolved {
	if image == "" {
		image = s.Defaults.Image
	}
	best, _ := s.SectionFor(image)
	r := s.resolve(best)
	if r.Image == "" {
		r.Image = image
	}
	return r
}

// SectionFor returns the section for image, and its number; -1 and an empty one if none
// matches.
func (s *Settings) SectionFor(image string) (best Section, number int) {
	number = -1
	for i, section := range s.Images {
		if len(section.Match) > len(best.Match) && matchImage(section.Match, image) {
			best, number = section, i
		}
	}
	return best, number
}

// All yields the settings of [defaults], under an empty name, and of each section,
// under its pattern.
func (s *Settings) All() iter.Seq2[string, Resolved] {
	return func(yield func(string, Resolved) bool) {
		for _, section := range append([]Section{{}}, s.Images...) {
			if !yield(section.Match, s.resolve(section)) {
				return
			}
		}
	}
}

// resolve applies [defaults] and then section to the built-in defaults.
func (s *Settings) resolve(section Section) Resolved {
	tables := []PerImage{s.Defaults.PerImage, section.PerImage}
	shell := "bash"
	for _, table := range tables {
		if table.Shell != nil {
			shell = *table.Shell
		}
	}
	r := builtIn(s.Defaults.Connect, shell)
	for _, table := range tables {
		table.applyTo(&r)
	}
	r.Image, r.Trusted, r.Domain, r.Architecture = section.Image, section.Trusted, section.Domain, section.Architecture
	r.sectionUsername, r.sectionPassword = section.Username != nil, section.Password != nil
	return r
}

// applyTo copies what p sets to the fields of the same name.
func (p PerImage) applyTo(r *Resolved) {
	from, to := reflect.ValueOf(p), reflect.ValueOf(r).Elem()
	for i := range from.NumField() {
		if value := from.Field(i); !value.IsNil() {
			field := to.FieldByName(from.Type().Field(i).Name)
			field.Set(value.Elem().Convert(field.Type()))
		}
	}
}

// windowsPath matches an absolute path on a drive.
var windowsPath = regexp.MustCompile(`^[A-Za-z]:[\\/]`)

// Windows reports whether the guests run Windows, and so have PowerShell but no sh.
// The path of their directories decides, because pwsh runs on Linux too.
func (r Resolved) Windows() bool { return windowsPath.MatchString(r.GuestBuildsDir) }

// MachineArchitecture returns the architecture of the machines of an image, which may not say
// for which it is (empty).
func (r Resolved) MachineArchitecture(image string) string {
	return cmp.Or(image, oci.Architecture(r.Architecture))
}

// WithUser returns settings that choose the user of the guest, whatever the image says.
func (r Resolved) WithUser(name string) Resolved {
	r.Username, r.sectionUsername = name, true
	return r
}

// Login returns how to log in to the guest of an image with that VM config. The
// image's own section of the settings wins over the image, and the image over
// [defaults].
func (r Resolved) Login(guest oci.GuestConfig) guestssh.Login {
	login := guestssh.Login{User: r.Username, Password: r.Password, IdentityFile: r.IdentityFile, Agent: r.SSHAgent}
	if len(guest.Users) == 0 {
		return login
	}
	user := guest.Users[0]
	if r.sectionUsername {
		i := slices.IndexFunc(guest.Users, func(u oci.User) bool { return u.Username == r.Username })
		if i < 0 {
			return login
		}
		user = guest.Users[i]
	}
	login.User = user.Username
	if !r.sectionPassword && user.Password != "" {
		login.Password = user.Password
	}
	return login
}
