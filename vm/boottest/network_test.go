package boottest

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"gitlab-sardine-executor/vm"
)

// listen serves "reached" by HTTP on an address of the host.
func listen(t *testing.T, address string) (port string) {
	t.Helper()
	l, err := net.Listen("tcp4", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "reached") })}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port
}

// reaches says whether the guest gets an answer by HTTP.
func reaches(t *testing.T, guest *vm.Guest, address, port string) bool {
	t.Helper()
	out, _ := script(t, guest, fmt.Sprintf("wget -q -T 3 -O - http://%s:%s/ 2>/dev/null", address, port))
	return out == "reached"
}

// greets says whether the guest gets the greeting of an SSH server.
func greets(t *testing.T, guest *vm.Guest, address string) bool {
	t.Helper()
	out, _ := script(t, guest, fmt.Sprintf("echo SSH-2.0-test | timeout 3 nc -w 3 %s 22", address))
	return strings.HasPrefix(out, "SSH-2.0-")
}

// addressIn is the guest's own idea of its IPv4 address, and of its gateway's.
func addressIn(t *testing.T, guest *vm.Guest) (address, gateway string) {
	t.Helper()
	out, _ := script(t, guest, `ip -4 -o addr show eth0 | sed 's/.*inet \([0-9.]*\).*/\1/'; ip route | sed -n 's/default via \([0-9.]*\).*/\1/p'`)
	fmt.Sscan(out, &address, &gateway)
	return address, gateway
}

// The user network gives each guest a private network, and nothing of the host's
// loopback address.
func TestUserNetwork(t *testing.T) {
	eachMode(t, func(t *testing.T, l *lab) {
		port := listen(t, "127.0.0.1")
		first := l.ready(t, l.spec("first", onNetwork(vm.UserNetwork)))
		second := l.ready(t, l.spec("second", onNetwork(vm.UserNetwork)))
		for _, guest := range []*vm.Guest{first, second} {
			if len(guest.Warnings) > 0 {
				t.Errorf("warnings: %q", guest.Warnings)
			}
			_, gateway := addressIn(t, guest)
			for _, address := range []string{"127.0.0.1", gateway, "192.0.2.2", "169.254.1.1"} {
				if reaches(t, guest, address, port) {
					t.Errorf("%s reaches the host's 127.0.0.1 by %s", guest.Name(), address)
				}
			}
		}
		// The forwarded ports of SSH are on the loopback address, too.
		_, forwarded, _ := net.SplitHostPort(second.Record().Address)
		if _, gateway := addressIn(t, first); reaches(t, first, gateway, forwarded) {
			t.Error("one guest reaches the other by its forwarded port")
		}
	})
}

// On a libvirt network guests share a bridge, and must not see each other there.
func TestLibvirtNetwork(t *testing.T) {
	systemOnly(t, func(t *testing.T, l *lab) {
		first, second := l.ready(t, l.spec("first")), l.ready(t, l.spec("second"))
		address, gateway := addressIn(t, second)
		loopback, bridge := listen(t, "127.0.0.1"), listen(t, gateway)
		for _, guest := range []*vm.Guest{first, second} {
			if len(guest.Warnings) > 0 {
				t.Errorf("warnings: %q", guest.Warnings)
			}
		}
		if !reaches(t, first, gateway, bridge) {
			t.Error("a guest does not reach the host by the bridge's address")
		}
		for _, to := range []string{"127.0.0.1", gateway} {
			if reaches(t, first, to, loopback) {
				t.Errorf("a guest reaches the host's 127.0.0.1 by %s", to)
			}
		}
		out, _ := script(t, first, fmt.Sprintf("wget -T 3 -O - http://%s:%s/; ip route; ping -c1 -W2 %s; echo 'GET / HTTP/1.0\n' | nc -w 3 %s %s; which wget nc", gateway, bridge, gateway, gateway, bridge))
		t.Log(out, l.virsh(t, "net-dumpxml", "default"), run(t, "ebtables", "-t", "nat", "-L", "--Lc"))
		if greets(t, first, address) {
			t.Error("one guest reaches the other")
		}
	})
}
