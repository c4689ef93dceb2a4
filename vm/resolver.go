package vm

import (
	"net/netip"
	"os"
	"strings"
)

const (
	resolvConf = "/etc/resolv.conf"
	// uplinkResolvConf is where systemd-resolved lists the servers that it asks
	// itself (systemd-resolved.service(8)); podman and Docker read it as well.
	uplinkResolvConf = "/run/systemd/resolve/resolv.conf"

	// forwardedResolver is an address at which passt answers a guest in place of
	// the host's own resolver; podman's choice for pasta.
	forwardedResolver = "169.254.1.1"
	// resolversMax is how many servers a resolver asks (MAXNS, resolv.conf(5)).
	resolversMax = 3
)

// resolverOptions are passt's options by which a guest finds names. passt itself
// hands on the servers of resolv.conf, but leaves out those on the loopback
// address, which a guest cannot reach: with systemd-resolved (127.0.0.53) or a
// local dnsmasq, none is left. Then the guest gets the servers behind
// systemd-resolved, or, where another resolver runs, one address from which
// passt forwards queries to it, and nothing else, over UDP.
func resolverOptions(conf, uplinks string) []string {
	configured := nameservers(conf)
	if len(configured) == 0 || hasRemote(configured) {
		return nil
	}
	var options []string
	for _, server := range nameservers(uplinks) {
		if !server.IsLoopback() && len(options) < 2*resolversMax {
			options = append(options, "--dns", server.String())
		}
	}
	if options != nil {
		return options
	}
	for _, server := range configured {
		if server.Is4() {
			// passt of Debian 12 forwards to the first server that it would tell the
			// guest of; that one, on the guest's own loopback, refuses at once. Newer
			// versions forward to the host's, and leave the first out.
			return []string{"--dns", server.String(), "--dns", forwardedResolver, "--dns-forward", forwardedResolver}
		}
	}
	return nil
}

func hasRemote(servers []netip.Addr) bool {
	for _, server := range servers {
		if !server.IsLoopback() {
			return true
		}
	}
	return false
}

// nameservers are those of a resolv.conf; none if it cannot be read. One with a
// zone is of no use to anybody else.
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
