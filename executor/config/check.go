package config

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"

	"gitlab-sardine-executor/oci"
)

// minCacheSize, in bytes, is the smallest cache_size: a smaller disk holds no file
// system.
const minCacheSize = 16 << 20

// Shells are the values of the setting shell.
var Shells = []string{"bash", "sh", "zsh", "pwsh", "powershell"}

// check finds values that no job could use, before a job meets them.
func (s *Settings) check() error {
	if err := s.Defaults.check(); err != nil {
		return fmt.Errorf("[defaults]: %w", err)
	}
	if err := s.resolve(Section{}).check(); err != nil {
		return fmt.Errorf("[defaults]: %w", err)
	}
	if err := s.Serve.check(); err != nil {
		return fmt.Errorf("[serve]: %w", err)
	}
	for i, section := range s.Images {
		if section.Match == "" {
			return fmt.Errorf("[[image]] number %d has no match = \"GLOB\"", i+1)
		}
		err := section.check()
		if err == nil {
			err = s.resolve(section).check()
		}
		if err != nil {
			return fmt.Errorf("[[image]] match = %q: %w", section.Match, err)
		}
	}
	return nil
}

func (d *Defaults) check() error {
	if err := oneOf("log_format", d.LogFormat, "text", "json"); err != nil && d.LogFormat != "" {
		return err
	}
	for _, name := range d.AllowedJobVariables {
		if !slices.Contains(jobVariables, name) {
			return fmt.Errorf("allowed_job_variables: %q is none of %s", name, strings.Join(jobVariables, ", "))
		}
	}
	if d.CacheSize < minCacheSize {
		return fmt.Errorf("cache_size is %d bytes: a file system needs at least %s", d.CacheSize, units.BytesSize(minCacheSize))
	}
	if d.QueueTimeout == 0 {
		return errors.New("queue_timeout must be greater than 0 (such as 1s)")
	}
	if d.PullStallTimeout < Duration(time.Second) {
		return fmt.Errorf("pull_stall_timeout is %s: want at least 1s", time.Duration(d.PullStallTimeout))
	}
	for _, pattern := range d.AllowedImages {
		if err := checkGlob(pattern); err != nil {
			return fmt.Errorf("allowed_images: %q: %w", pattern, err)
		}
	}
	return nil
}

func (s *Section) check() error {
	if err := checkGlob(s.Match); err != nil {
		return err
	}
	if s.Domain != "" && !filepath.IsAbs(s.Domain) {
		return fmt.Errorf("domain is %q: want an absolute path on this host", s.Domain)
	}
	if s.Architecture != "" {
		if err := oneOf("architecture", s.Architecture, "amd64", "arm64"); err != nil {
			return err
		}
	}
	return s.checkIdle()
}

// check of a section finds errors of the section alone: [defaults] was checked before.
func (r Resolved) check() error {
	if len(r.PullPolicies) == 0 {
		return errors.New("pull_policy: an empty list allows nothing")
	}
	if r.CPUs < 0 && r.CPUs != AutoCPUs {
		return fmt.Errorf("cpus is %d: want a number, 0 for the image's, or \"auto\"", r.CPUs)
	}
	if r.Timeout == 0 {
		return errors.New("timeout must be greater than 0")
	}
	if !slices.Contains([]string{RunnerAuto, RunnerGuest, RunnerOff}, r.RunnerBinary) && !filepath.IsAbs(r.RunnerBinary) {
		return fmt.Errorf("runner_binary is %q: want auto, guest, off or an absolute path", r.RunnerBinary)
	}
	if r.PrepareScript != "" && !filepath.IsAbs(r.PrepareScript) {
		return fmt.Errorf("prepare_script is %q: want an absolute path on this host", r.PrepareScript)
	}
	return firstError(
		checkPolicies("pull_policy", r.PullPolicies),
		checkPolicies("allowed_pull_policies", r.AllowedPullPolicies),
		oneOf("wait_for", r.WaitFor, WaitBoot, "login"),
		oneOf("accel", r.Accel, "auto", "kvm", "tcg"),
		oneOf("firmware", r.Firmware, "auto", "bios", "uefi", "uefi-secure"),
		oneOf("omit_backingstore", r.OmitBackingStore, "auto", "yes", "no"),
		oneOf("cache", r.Cache, CacheNone, CacheDisk, CacheShare),
		oneOf("shell", r.Shell, Shells...),
		r.checkGuestDirs(),
	)
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// oneOf wants a value to be one of several words.
func oneOf(key, value string, words ...string) error {
	if slices.Contains(words, value) {
		return nil
	}
	last := len(words) - 1
	return fmt.Errorf("%s is %q: want %s or %s", key, value, strings.Join(words[:last], ", "), words[last])
}

func checkPolicies(key string, policies []oci.PullPolicy) error {
	for _, policy := range policies {
		switch policy {
		case oci.PullAlways, oci.PullIfNotPresent, oci.PullNever:
		default:
			return fmt.Errorf("%s is %q: want always, if-not-present or never", key, policy)
		}
	}
	return nil
}

// checkGuestDirs wants the guest's directories to be paths that its shell can use.
func (r Resolved) checkGuestDirs() error {
	powerShell := r.Shell == "pwsh" || r.Shell == "powershell"
	for _, setting := range []struct{ key, dir string }{{"guest_builds_dir", r.GuestBuildsDir}, {"guest_cache_dir", r.GuestCacheDir}} {
		key, dir := setting.key, setting.dir
		windows := windowsPath.MatchString(dir)
		switch {
		case !windows && !path.IsAbs(dir):
			return fmt.Errorf("%s is %q: want an absolute path in the guest", key, dir)
		case windows && !powerShell:
			return fmt.Errorf("%s is %q: a guest with the shell %s has no drives", key, dir, r.Shell)
		case !windows && r.Shell == "powershell":
			return fmt.Errorf(`%s is %q: the shell powershell runs on Windows, where a path begins with a drive, such as C:\builds`, key, dir)
		case windows != r.Windows():
			return fmt.Errorf("guest_builds_dir is %q and guest_cache_dir is %q: want two paths of one system", r.GuestBuildsDir, r.GuestCacheDir)
		}
	}
	return nil
}
