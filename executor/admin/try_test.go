package admin

import (
	"errors"
	"testing"
)

// What prepare and cleanup have in common is said once.
func TestJoinOnce(t *testing.T) {
	down, full := errors.New("libvirt is down"), errors.New("disk full")
	for _, c := range []struct {
		prepare, cleanup error
		want             string
	}{
		{down, errors.New("libvirt is down"), "libvirt is down"}, {down, full, "libvirt is down\ndisk full"},
		{down, nil, "libvirt is down"}, {nil, full, "disk full"},
	} {
		if err := joinOnce(c.prepare, c.cleanup); err.Error() != c.want || c.prepare != nil && !errors.Is(err, c.prepare) {
			t.Errorf("%v and %v: %q", c.prepare, c.cleanup, err)
		}
	}
	if err := joinOnce(nil, nil); err != nil {
		t.Error(err)
	}
}
