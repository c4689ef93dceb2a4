package store

import (
	"errors"
	"net/http"
	"testing"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/internal/ocitest"
	"gitlab-sardine-executor/oci/transfer"
)

// TestPullPolicy asks for an image that the store holds and for one that it does
// not, while the registry answers, refuses, or is out of order. always uses the
// copy in the store only where the list of policies says so.
func TestPullPolicy(t *testing.T) {
	t.Parallel()
	m := ocitest.NewFaultyRegistry(t)
	held, other := ocitest.MustParse(t, m.Host+"/vms/held:1"), ocitest.MustParse(t, m.Host+"/vms/other:1")
	for _, ref := range []oci.Reference{held, other} {
		if _, err := transfer.Push(t.Context(), ocitest.FixtureRef(t, "single", "latest"), ref, transfer.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	passing := errors.New("an error that may pass")
	type policies = []oci.PullPolicy
	tests := map[string]struct {
		status   int // of every answer; 0: as it should be
		policies policies
		held     error
		other    error
	}{
		"none means always":             {0, nil, nil, nil},
		"always":                        {0, policies{oci.PullAlways}, nil, nil},
		"if-not-present":                {0, policies{oci.PullIfNotPresent}, nil, nil},
		"never":                         {0, policies{oci.PullNever}, nil, oci.ErrNotFound},
		"always, denied":                {403, policies{oci.PullAlways}, oci.ErrDenied, oci.ErrDenied},
		"always, gone":                  {404, policies{oci.PullAlways}, oci.ErrNotFound, oci.ErrNotFound},
		"always, down":                  {503, policies{oci.PullAlways}, passing, passing},
		"if-not-present, down":          {503, policies{oci.PullIfNotPresent}, nil, passing},
		"always or if-not-present":      {503, policies{oci.PullAlways, oci.PullIfNotPresent}, nil, passing},
		"always or never":               {503, policies{oci.PullAlways, oci.PullNever}, nil, passing},
		"always or never, denied":       {403, policies{oci.PullAlways, oci.PullNever}, nil, oci.ErrDenied},
		"never or always":               {0, policies{oci.PullNever, oci.PullAlways}, nil, nil},
		"never or always, down":         {503, policies{oci.PullNever, oci.PullAlways}, nil, passing},
		"always twice, that changes no": {403, policies{oci.PullAlways, oci.PullAlways}, oci.ErrDenied, oci.ErrDenied},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m.Fail(nil)
			store := newStore(t)
			pull := func(ref oci.Reference, p policies) error {
				image, err := store.Pull(t.Context(), ref, PullOptions{Policies: p, retries: shortRetries})
				if err == nil {
					err = image.Close()
				}
				return err
			}
			if err := pull(held, nil); err != nil {
				t.Fatal(err)
			}
			if test.status != 0 {
				m.Fail(func(w http.ResponseWriter, _ *http.Request) bool {
					w.WriteHeader(test.status)
					return true
				})
			}
			for ref, want := range map[oci.Reference]error{held: test.held, other: test.other} {
				err := pull(ref, test.policies)
				switch {
				case want == passing && (err == nil || oci.IsPermanent(err)):
					t.Errorf("%s: got %v, want an error that may pass", ref, err)
				case want != passing && !errors.Is(err, want):
					t.Errorf("%s: got %v, want %v", ref, err, want)
				}
			}
		})
	}
}
