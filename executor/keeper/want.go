package keeper

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/store"
)

// A want is an image with the number of machines to keep ready.
type want struct {
	match    string // of the section
	ref      oci.Reference
	settings config.Resolved
	count    int
	limit    time.Duration // of the age
	// policies for the pull: what jobs used last is not pulled again.
	policies []oci.PullPolicy
}

func (w want) key() string { return w.match + " " + w.ref.String() }

// wants returns what the settings ask for. used are the images in the store that a glob may
// stand for.
func wants(ctx context.Context, s *config.Settings, used func(context.Context) ([]store.StoredImage, error)) ([]want, error) {
	var found []want
	var stored []store.StoredImage
	number := -2 // s.All begins with [defaults]
	for _, settings := range s.All() {
		if number++; number < 0 {
			continue
		}
		section := s.Images[number]
		if section.IdleMachines == 0 {
			continue
		}
		base := want{match: section.Match, settings: settings, count: int(section.IdleMachines), limit: section.IdleLimit()}
		if isGlob(section.Match) && section.Image == "" {
			if stored == nil {
				var err error
				if stored, err = used(ctx); err != nil {
					return nil, err
				}
			}
			found = append(found, lastUsed(s, number, base, stored)...)
			continue
		}
		exact, err := exactly(s, number, base)
		if err != nil {
			return nil, err
		}
		found = append(found, exact)
	}
	return found, nil
}

func isGlob(pattern string) bool { return strings.ContainsAny(pattern, `*?[{\`) }

// exactly is the want of a section for one image, or with a substitute for all of its images.
func exactly(s *config.Settings, number int, w want) (want, error) {
	image := s.Images[number].Image
	if image == "" {
		image = s.Images[number].Match
		w.settings = s.For(image)
	}
	ref, err := oci.ParseReference(image)
	if err != nil {
		return w, fmt.Errorf("idle_machines of %s: %w", w.match, err)
	}
	w.ref = ref
	// If the registry refuses this host, or is down, what is in the store is good enough:
	// each job asks the registry itself.
	w.policies = append(slices.Clone(w.settings.PullPolicies), oci.PullNever)
	return w, nil
}

// lastUsed distributes the machines of a section among its images, the last used ones first.
func lastUsed(s *config.Settings, number int, base want, stored []store.StoredImage) []want {
	stored = slices.Clone(stored)
	slices.SortStableFunc(stored, func(a, b store.StoredImage) int { return b.LastUsed.Compare(a.LastUsed) })
	var found []want
	for _, image := range stored {
		for _, name := range image.References {
			if _, section := s.SectionFor(name); image.Image == nil || section != number || !s.Allowed(name) || len(found) == base.count {
				continue
			}
			ref, err := oci.ParseReference(name)
			if err != nil {
				continue
			}
			w := base
			w.ref, w.settings, w.count, w.policies = ref, s.For(name), 0, []oci.PullPolicy{oci.PullNever}
			found = append(found, w)
		}
	}
	for n := range base.count {
		if len(found) > 0 {
			found[n%len(found)].count++
		}
	}
	return found
}
