package oci

import (
	"errors"
	"net/http"
	"testing"
)

// TestPullPolicy asks for an image that the store holds and for one that it does
// not, while the registry answers, refuses, or is out of order. always uses the
// copy in the store only where the list of policies says so.
func TestPullPolicy(t *testing.T) {
	m := newMeddler(t)
	held, other := mustParse(t, m.host+"/vms/held:1"), mustParse(t, m.host+"/vms/other:1")
	for _, ref := range []Reference{held, other} {
		if _, err := Push(t.Context(), fixtureRef(t, "single", "latest"), ref, TransferOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	passing := errors.New("an error that may pass")
	type policies = []PullPolicy
	tests := map[string]struct {
		status   int // of every answer; 0: as it should be
		policies policies
		held     error
		other    error
	}{
		"none means always":             {0, nil, nil, nil},
		"always":                        {0, policies{PullAlways}, nil, nil},
		"if-not-present":                {0, policies{PullIfNotPresent}, nil, nil},
		"never":                         {0, policies{PullNever}, nil, ErrNotFound},
		"always, denied":                {403, policies{PullAlways}, ErrDenied, ErrDenied},
		"always, gone":                  {404, policies{PullAlways}, ErrNotFound, ErrNotFound},
		"always, down":                  {503, policies{PullAlways}, passing, passing},
		"if-not-present, down":          {503, policies{PullIfNotPresent}, nil, passing},
		"always or if-not-present":      {503, policies{PullAlways, PullIfNotPresent}, nil, passing},
		"always or never":               {503, policies{PullAlways, PullNever}, nil, passing},
		"always or never, denied":       {403, policies{PullAlways, PullNever}, nil, ErrDenied},
		"never or always":               {0, policies{PullNever, PullAlways}, nil, nil},
		"never or always, down":         {503, policies{PullNever, PullAlways}, nil, passing},
		"always twice, that changes no": {403, policies{PullAlways, PullAlways}, ErrDenied, ErrDenied},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m.set(nil)
			store := newStore(t)
			pull := func(ref Reference, p policies) error {
				image, err := store.Pull(t.Context(), ref, PullOptions{Policies: p, patience: briefly})
				if err == nil {
					err = image.Close()
				}
				return err
			}
			if err := pull(held, nil); err != nil {
				t.Fatal(err)
			}
			if test.status != 0 {
				m.set(func(w http.ResponseWriter, _ *http.Request) bool {
					w.WriteHeader(test.status)
					return true
				})
			}
			for ref, want := range map[Reference]error{held: test.held, other: test.other} {
				err := pull(ref, test.policies)
				switch {
				case want == passing && (err == nil || Final(err)):
					t.Errorf("%s: got %v, want an error that may pass", ref, err)
				case want != passing && !errors.Is(err, want):
					t.Errorf("%s: got %v, want %v", ref, err, want)
				}
			}
		})
	}
}
