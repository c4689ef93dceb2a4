package passt

import (
	"net/netip"
	"os"
	"os/exec"
	"strings"
)

const (
	resolvConf = "/etc/resolv.conf"
	// uplinkResolvConf lists the servers that systemd-resolved queries
	// (systemd-resolved.service(8)). podman and Docker read it, too.
	uplinkResolvConf = "/run/systemd/resolve/resolv.conf"

	// resolversMax is the number of servers that a resolver uses (MAXNS, resolv.conf(5)).
	resolversMax = 3
)

// resolverWarning is the warning for a guest that cannot resolve names.
const resolverWarning = "the guest cannot resolve names: this host's resolver listens on the loopback address, which guests do not reach, " +
	"and systemd-resolved, which would say whom it asks, does not run here"

// resolverOptions returns the options of passt for the guest's DNS servers; ok is false if
// there are none. passt uses the servers in resolv.conf except those on the loopback
// address, which guests do not reach. With systemd-resolved (127.0.0.53) none is left, and
// the guest gets the servers that systemd-resolved queries.
//
// passt can also forward queries to the host's resolver (--dns-forward, which podman uses).
// But the version of Debian 12 announces that address to the guest only with --dns, and
// then forwards to another server.
func resolverOptions(conf, uplinks string) (options []string, ok bool) {
	configured := nameservers(conf)
	if len(configured) == 0 || hasRemote(configured) {
		return nil, true
	}
	for _, server := range nameservers(uplinks) {
		if !server.IsLoopback() && len(options) < 2*resolversMax {
			options = append(options, "--dns", server.String())
		}
	}
	return options, options != nil
}

func hasRemote(servers []netip.Addr) bool {
	for _, server := range servers {
		if !server.IsLoopback() {
			return true
		}
	}
	return false
}

// nameservers returns the servers in a resolv.conf; none if it cannot be read. It omits
// addresses with a zone, which are valid on this host only.
func nameservers(path string) []netip.Addr {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var servers []netip.Addr
	for line := range strings.Lines(string(text)) {
		field := strings.Fields(line)
		if len(field) < 2 || field[0] != "nameserver" {
			continue
		}
		if server, err := netip.ParseAddr(field[1]); err == nil && server.Zone() == "" {
			servers = append(servers, server)
		}
	}
	return servers
}

// ResolverFiles returns the contents of the files that determine the guests' DNS servers.
func ResolverFiles() []string {
	var files []string
	for _, path := range []string{resolvConf, uplinkResolvConf} {
		text, _ := os.ReadFile(path)
		files = append(files, string(text))
	}
	return files
}

// Installed reports whether passt is installed.
func Installed() bool {
	_, err := exec.LookPath("passt")
	return err == nil
}
