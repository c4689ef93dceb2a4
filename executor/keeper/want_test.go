package keeper

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/executor"
	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/store"
	"gitlab-sardine-executor/vm/admission"
)

// used are images in the order of their last use, the latest last.
func used(references ...string) func(context.Context) ([]store.StoredImage, error) {
	return func(context.Context) (found []store.StoredImage, _ error) {
		for i, names := range references {
			found = append(found, store.StoredImage{
				References: strings.Fields(names), LastUsed: time.Unix(int64(i), 0), Image: &oci.Image{},
			})
		}
		found[0].Image = nil // not complete
		return found, nil
	}
}

func TestWants(t *testing.T) {
	for name, test := range map[string]struct {
		settings string
		want     []string
	}{
		"no idle machines": {"[[image]]\nmatch = 'registry.example.com/**'", nil},
		"one image":        {"[[image]]\nmatch = 'registry.example.com/a:1'\nidle_machines = 2", []string{"registry.example.com/a:1 2"}},
		"a substitute":     {"[[image]]\nmatch = 'registry.example.com/*'\nimage = 'registry.example.com/z:1'\nidle_machines = 3", []string{"registry.example.com/z:1 3"}},
		"last used first":  {"[[image]]\nmatch = 'registry.example.com/*'\nidle_machines = 2", []string{"registry.example.com/c:1 1", "registry.example.com/b:1 1"}},
		"more than images": {"[[image]]\nmatch = 'registry.example.com/*'\nidle_machines = 4", []string{"registry.example.com/c:1 2", "registry.example.com/b:1 1", "registry.example.com/b:2 1"}},
		"another section has the image": {
			"[[image]]\nmatch = 'registry.example.com/*'\nidle_machines = 1\n[[image]]\nmatch = 'registry.example.com/c:*'",
			[]string{"registry.example.com/b:1 1"},
		},
		"not allowed": {
			"[defaults]\nallowed_images = ['registry.example.com/b:2']\n[[image]]\nmatch = 'registry.example.com/*'\nidle_machines = 1",
			[]string{"registry.example.com/b:2 1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := config.Parse([]byte(test.settings))
			if err != nil {
				t.Fatal(err)
			}
			found, err := wants(t.Context(), s, used("registry.example.com/partial:1", "registry.example.com/b:1 registry.example.com/b:2", "registry.example.com/c:1", "other.example.com/d:1"))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, w := range found {
				got = append(got, fmt.Sprintf("%s %d", w.ref, w.count))
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// A glob stands for what jobs pulled, which serve does not pull again; one image is asked for
// at its registry, and what is in the store is good enough.
func TestPolicies(t *testing.T) {
	s, err := config.Parse([]byte("[[image]]\nmatch = 'registry.example.com/a:1'\nidle_machines = 1\n[[image]]\nmatch = 'registry.example.com/b:*'\nidle_machines = 1"))
	if err != nil {
		t.Fatal(err)
	}
	found, err := wants(t.Context(), s, used("", "registry.example.com/b:1"))
	if err != nil || len(found) != 2 {
		t.Fatal(found, err)
	}
	if !slices.Equal(found[0].policies, []oci.PullPolicy{oci.PullAlways, oci.PullNever}) || !slices.Equal(found[1].policies, []oci.PullPolicy{oci.PullNever}) {
		t.Errorf("policies %q and %q", found[0].policies, found[1].policies)
	}
}

func TestBackoff(t *testing.T) {
	now := time.Unix(1700000000, 0)
	var a attempts
	var delays []time.Duration
	for range 9 {
		a = a.failed(errors.New("no boot"), now)
		delays = append(delays, a.next.Sub(now))
	}
	if delays[0] != firstDelay || delays[1] != 2*firstDelay || delays[8] != maxDelay || !slices.IsSorted(delays) {
		t.Errorf("delays %s", delays)
	}
	for _, err := range []error{fmt.Errorf("start: %w", admission.ErrNoRoom), executor.ErrEvicted} {
		if room := a.failed(err, now); room.err != nil || !room.noRoom || room.next.Sub(now) != roomDelay {
			t.Errorf("after %v: %+v", err, room)
		}
	}
}
