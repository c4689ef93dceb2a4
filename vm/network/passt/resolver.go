package passt

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
)

const (
	resolvConf = "/etc/resolv.conf"
	// uplinkResolvConf is where systemd-resolved lists the servers that it asks
	// itself (systemd-resolved.service(8)); podman and Docker read it as well.
	uplinkResolvConf = "/run/systemd/resolve/resolv.conf"

	// resolversMax is how many servers a resolver asks (MAXNS, resolv.conf(5)).
	resolversMax = 3
)

// resolverWarning is for the log of a job whose guest finds no names.
const resolverWarning = "the guest finds no names: this host's resolver listens on the loopback address, which no guest reaches, " +
	"and systemd-resolved, which would say whom it asks, does not run here"

// resolverOptions are passt's options by which a guest finds names; false if it
// cannot. passt itself hands on the servers of resolv.conf, but leaves out those
// on the loopback address, which a guest cannot reach: with systemd-resolved
// (127.0.0.53) none is left, and the guest gets the servers behind it.
//
// passt can also forward queries to the host's resolver (--dns-forward, which
// podman uses); but the version of Debian 12 tells the guest of that address only
// if it is given by --dns as well, and then forwards elsewhere.
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

// ResolverFiles are what tells passt which name servers to give to its guests.
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

// HostAddresses are the addresses from which this host speaks to the world, as
// passt gives them to its guests. Nothing is sent.
func HostAddresses() []string {
	var addresses []string
	for _, somewhere := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} { // RFC 5737, RFC 3849
		conn, err := net.Dial("udp", somewhere)
		if err != nil {
			continue // it has none of this family
		}
		addresses = append(addresses, conn.LocalAddr().(*net.UDPAddr).IP.String())
		conn.Close()
	}
	return addresses
}
