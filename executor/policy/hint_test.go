package policy

import (
	"net"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/vm/network/passt"
)

// A job on the network user is told that its GitLab server is out of reach, and only then.
func TestServerHint(t *testing.T) {
	own := passt.HostAddresses()
	if len(own) == 0 {
		t.Skip("this machine has no route, and so no address of its own")
	}
	user := config.Resolved{Network: "user"}
	server := "http://" + net.JoinHostPort(own[0], "8080") + "/gitlab"
	for _, c := range []struct {
		name     string
		settings config.Resolved
		server   string
		want     bool
	}{
		{"the host", user, server, true},
		{"another host", user, "https://192.0.2.99", false},
		{"with host access", config.Resolved{Network: "user", HostAccess: true}, server, false},
		{"another network", config.Resolved{Network: "default"}, server, false},
		{"no URL", user, "", false},
		{"a broken URL", user, "http://[", false},
	} {
		hint := HintFor(t.Context(), c.settings, c.server)
		if c.want {
			select {
			case address := <-hint.address:
				hint.address <- address
			case <-time.After(10 * time.Second):
				t.Fatalf("%s: not found", c.name)
			}
		}
		var log strings.Builder
		hint.Tell(joblog.New(&log))
		if strings.Contains(log.String(), "host_access = true") != c.want {
			t.Errorf("%s: %q", c.name, log.String())
		}
	}
}
