// Package claim takes an idle machine for a job, instead of booting one.
package claim

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/policy"
	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/admission"
	"gitlab-sardine-executor/vm/cache"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/idle"
	"gitlab-sardine-executor/vm/network/passt"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt"
)

// A Kind is everything that decides how a machine is made. A job takes an idle machine only
// if it would have made the same one.
type Kind struct {
	// Version of this program.
	Version string
	// Connect is the URI of libvirt.
	Connect string
	// Image is the key of the image in the store, and Reference that of the job.
	Image, Reference string
	// Settings for the image, and the size that follows from them.
	Settings config.Resolved
	Size     policy.Size
	// Login of the guest. Keys that are made for each machine are left out.
	Login guestssh.Login
	// Tools is the path of the disk with programs of this host, which its content names.
	Tools string
}

// Fingerprint is equal for equal kinds on a host with the same addresses.
func (k Kind) Fingerprint() (string, error) {
	// What does not reach the machine before the job does.
	k.Settings.Image, k.Settings.PullPolicies, k.Settings.AllowedPullPolicies = "", nil, nil
	k.Settings.PrepareScript, k.Settings.KeepOnFailure = "", 0
	k.Login.Key = nil
	var addresses, resolver []string
	if k.Settings.Network == config.UserNetwork {
		addresses, resolver = passt.GuestAddresses(k.Settings.HostAccess), passt.ResolverFiles()
	}
	text, err := json.Marshal(struct {
		Kind
		Addresses, Resolver []string
	}{k, addresses, resolver})
	if err != nil {
		return "", fmt.Errorf("describe the machine: %w", err)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:16]), nil
}

// A Wish is the machine that a job wants.
type Wish struct {
	// Kind is a fingerprint: see [Kind.Fingerprint].
	Kind string
	// Name by which the job knows its machine, and the place of a machine of that name.
	Name  string
	Place vm.Place
	// Cache of the job; nil for none.
	Cache     *cache.Config
	Record    record.Record
	Admission admission.Policy
	// Detail gets the reason why a machine was not taken.
	Detail func(text string)
}

// Take takes an idle machine of that kind when the host has room for one more machine of a
// job. It returns nil if there is none: the job has to boot one. Of several machines it
// tries the oldest first, and the next one if that does not answer.
func (w Wish) Take(ctx context.Context, h *virt.Host) (*vm.Started, error) {
	if w.Cache != nil && w.Cache.Mode != cache.Disk {
		return nil, nil // a share cannot be plugged in
	}
	found, err := Ready(w.Place.Storage(), w.Kind)
	if len(found) == 0 || err != nil {
		return nil, err
	}
	release, err := w.Admission.Admit(ctx, h, w.Name, found[0].Memory, w.Place.Storage())
	if err != nil {
		return nil, err
	}
	taken, err := w.first(ctx, h)
	return taken, errors.Join(err, release())
}

// first tries the machines one after the other.
func (w Wish) first(ctx context.Context, h *virt.Host) (*vm.Started, error) {
	found, err := Ready(w.Place.Storage(), w.Kind) // the wait for room may have been long
	if err != nil {
		return nil, err
	}
	for _, m := range found {
		taken, err := vm.Claim{Domain: m.Domain, Name: w.Name, Place: w.Place, Cache: w.Cache, Record: w.Record}.Take(ctx, h)
		if err == nil {
			return taken, nil
		}
		if ctx.Err() != nil || errors.Is(err, errdefs.ErrDisconnected) {
			return nil, err
		}
		w.Detail(err.Error())
		if errors.Is(err, vm.ErrPlug) {
			break // the others stay for jobs without a cache
		}
	}
	return nil, nil
}

// A Machine is one that is ready for jobs.
type Machine struct {
	Domain string
	idle.State
}

// Ready returns the machines of that kind that jobs may take, the oldest first; of all kinds
// if kind is empty. jobs is the directory of jobs.
func Ready(jobs, kind string) ([]Machine, error) {
	names, err := idle.Offered(jobs)
	if err != nil {
		return nil, err
	}
	var found []Machine
	for _, name := range names {
		state, err := idle.Load(jobs, name)
		if err == nil && (kind == "" || state.Kind == kind) { // else it is just being taken
			found = append(found, Machine{name, state})
		}
	}
	return found, nil
}
