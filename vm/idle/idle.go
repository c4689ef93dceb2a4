// Package idle knows the files of machines that wait for a job: which of them jobs may take,
// and which job has taken one.
//
// A machine keeps the name of its domain, sardine-idle-N, and its directory of that name
// below the directory of jobs. A symbolic link with that target, below .idle, offers it.
// A job takes it by renaming the link to the name of its own directory: the kernel lets one
// process win, and the link then leads the later stages to the machine.
package idle

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// offers is the directory of the links to machines that jobs may take.
const offers = ".idle"

// abandonedAfter is the time without [Touch] after which idle machines have nobody that
// looks after them.
const abandonedAfter = 2 * time.Minute

// ErrTaken: the machine is not offered any more.
var ErrTaken = errors.New("another process has taken the idle machine")

var name = regexp.MustCompile(`^sardine-idle-[0-9a-f]{12}$`)

// NewName returns a name for a machine.
func NewName() string {
	random := make([]byte, 6)
	_, _ = rand.Read(random) // never fails
	return "sardine-idle-" + hex.EncodeToString(random)
}

// IsName reports whether [NewName] makes such names.
func IsName(text string) bool { return name.MatchString(text) }

// Domain returns the name of the domain of the machine that a job knows by that name. It is
// another one if the job has taken an idle machine. jobs is the directory of jobs.
func Domain(jobs, machine string) string {
	if target, err := os.Readlink(filepath.Join(jobs, machine)); err == nil && IsName(target) {
		return target
	}
	return machine
}

// Used reports whether this host has had idle machines.
func Used(jobs string) bool {
	_, err := os.Lstat(filepath.Join(jobs, offers))
	return err == nil
}

// Touch tells sweeps that a process looks after the idle machines. Call it more often than
// [abandonedAfter].
func Touch(jobs string) error {
	dir := filepath.Join(jobs, offers)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("look after idle machines: %w", err)
	}
	now := time.Now()
	if err := os.Chtimes(dir, now, now); err != nil {
		return fmt.Errorf("look after idle machines: %w", err)
	}
	return nil
}

// Abandoned reports whether no process looks after the idle machines.
func Abandoned(jobs string, now time.Time) bool {
	info, err := os.Stat(filepath.Join(jobs, offers))
	return err != nil || now.Sub(info.ModTime()) > abandonedAfter
}

// Offer offers a machine to jobs.
func Offer(jobs, domain string) error {
	if err := os.Symlink(domain, filepath.Join(jobs, offers, domain)); err != nil {
		return fmt.Errorf("offer an idle machine: %w", err)
	}
	return nil
}

// Offered returns the machines that jobs may take, the oldest offer first.
func Offered(jobs string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(jobs, offers))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for idle machines: %w", err)
	}
	times := make(map[string]time.Time)
	var names []string
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || !IsName(entry.Name()) {
			continue // taken meanwhile
		}
		times[entry.Name()] = info.ModTime()
		names = append(names, entry.Name())
	}
	slices.SortStableFunc(names, func(a, b string) int { return times[a].Compare(times[b]) })
	return names, nil
}

// Take takes the machine for a job, which knows it by the name machine from then on. The
// error is [ErrTaken] if it is not offered.
func Take(jobs, domain, machine string) error {
	from, to := filepath.Join(jobs, offers, domain), filepath.Join(jobs, machine)
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // not on every file system
		err = os.Rename(from, to)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return ErrTaken
	}
	if err != nil {
		return fmt.Errorf("take the idle machine %s: %w", domain, os.NewSyscallError("renameat2", err))
	}
	return nil
}

// Withdraw ends the offer of a machine, if there is one.
func Withdraw(jobs, domain string) error {
	return ignoreAbsent(os.Remove(filepath.Join(jobs, offers, domain)))
}

// Forget removes the link of a job to the machine that it has taken.
func Forget(jobs, machine, domain string) error {
	if machine == domain || Domain(jobs, machine) != domain {
		return nil
	}
	return ignoreAbsent(os.Remove(filepath.Join(jobs, machine)))
}

// Tidy removes links and offers that lead nowhere: to machines that are gone. With dryRun it
// removes nothing.
func Tidy(jobs string, dryRun bool) error {
	if dryRun {
		return nil
	}
	var failed []error
	for _, dir := range []string{jobs, filepath.Join(jobs, offers)} {
		entries, err := os.ReadDir(dir)
		failed = append(failed, ignoreAbsent(err))
		for _, entry := range entries {
			path := filepath.Join(dir, entry.Name())
			target, err := os.Readlink(path)
			if err != nil || !IsName(target) {
				continue
			}
			if _, err := os.Lstat(filepath.Join(jobs, target)); errors.Is(err, fs.ErrNotExist) {
				failed = append(failed, ignoreAbsent(os.Remove(path)))
			}
		}
	}
	return errors.Join(failed...)
}

func ignoreAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
