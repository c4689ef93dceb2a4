//go:build boot

package boot

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"gitlab-sardine-executor/internal/testbed/host"
	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/network"
	"gitlab-sardine-executor/vm/removal"
)

// listen serves "reached" by HTTP on an address of the host.
func listen(t *testing.T, address string) (port string) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
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
func reaches(t *testing.T, guest instance, address, port string) bool {
	t.Helper()
	out, _ := script(t, guest, connection("GET / HTTP/1.0\\n", address, port))
	return strings.HasSuffix(out, "reached")
}

// connection is a command of the guest that connects, sends a line and prints the answer.
// The sleep keeps the client's side open, since passt of Debian 12 can lose the answer to
// one that has closed it; a client whose server has closed the connection ends before it.
func connection(line, address, port string) string {
	return fmt.Sprintf("{ printf '%s\\n'; sleep 5 </dev/null 2>/dev/null & } | timeout 4 nc -w 3 %s %s 2>/dev/null", line, address, port)
}

// reachesAtLast is for connections that must come about: an emulated guest on a busy
// host can be slow.
func reachesAtLast(t *testing.T, guest instance, address, port string) bool {
	t.Helper()
	for range 5 {
		if reaches(t, guest, address, port) {
			return true
		}
	}
	return false
}

// greets says whether the guest gets the greeting of an SSH server.
func greets(t *testing.T, guest instance, address string) bool {
	t.Helper()
	return greetsAt(t, guest, address, "22")
}

func greetsAt(t *testing.T, guest instance, address, port string) bool {
	t.Helper()
	out, _ := script(t, guest, connection("SSH-2.0-test", address, port))
	return strings.HasPrefix(out, "SSH-2.0-")
}

// addressIn is the guest's own idea of its IPv4 address, and of its gateway's.
func addressIn(t *testing.T, guest instance) (address, gateway string) {
	t.Helper()
	out, _ := script(t, guest, `ip -4 -o addr show eth0 | sed 's/.*inet \([0-9.]*\).*/\1/'; ip route | sed -n 's/default via \([0-9.]*\).*/\1/p'`)
	fmt.Sscan(out, &address, &gateway)
	return address, gateway
}

// routeIPv6 gives the host a route for IPv6, until the test ends.
func routeIPv6(t *testing.T) {
	t.Helper()
	if os.Getenv(modeVariable) != "" {
		return
	}
	run(t, "ip", "-6", "route", "add", "default", "via", "2001:db8::1", "dev", "uplink")
	t.Cleanup(func() { run(t, "ip", "-6", "route", "del", "default", "via", "2001:db8::1", "dev", "uplink") })
}

// checkIPv6 looks at the same with IPv6: the guest has an address if the host has one, and
// never reaches the loopback address. It makes its address from the prefix that passt
// announces, so that it has no copy of the host's, and reaches the host in any case. Linux
// repeats a lost question for it after 4, 8, 16 and 32 s.
func checkIPv6(t *testing.T, guest instance, hostAccess bool, loopback, main string) {
	t.Helper()
	own, _ := script(t, guest, `for n in $(seq 300); do ip -6 -o addr show eth0 scope global | sed 's/.*inet6 \([^/]*\).*/\1/' | grep . && break; sleep 0.2; done`)
	gateway, _ := script(t, guest, `ip -6 route | sed -n 's/default via \([^ ]*\).*/\1%eth0/p'`)
	own, gateway = strings.TrimSpace(own), strings.TrimSpace(gateway)
	t.Logf("%s has the address %s and the gateway %s", guest.Name(), own, gateway)
	if own == "" || gateway == "" || strings.HasPrefix(own, "fd95:3c51:7a0e:1:") != hostAccess {
		t.Errorf("%s has the address %q and the gateway %q", guest.Name(), own, gateway)
		return
	}
	if !reachesAtLast(t, guest, hostIPv6, main) {
		t.Errorf("%s does not reach the host by its main IPv6 address", guest.Name())
	}
	// All at once: a connection that does not come about takes its time.
	out, _ := script(t, guest, fmt.Sprintf("for a in ::1 %s %s; do { echo 'GET / HTTP/1.0\n'; sleep 2; } | timeout 5 nc -w 3 $a %s 2>/dev/null & done; wait", gateway, own, loopback))
	if strings.Contains(out, "reached") {
		t.Errorf("%s reaches the host's ::1 by ::1, %s or %s: %s", guest.Name(), gateway, own, out)
	}
}

// hostIPv6 is the host's address on the interface with the default route.
const hostIPv6 = "2001:db8::2"

// The user network gives each guest a private network, and nothing of the host's
// loopback address. What the guest has as its own address leads to the host only if that is
// wanted.
func TestUserNetwork(t *testing.T) {
	routeIPv6(t)
	mostlyIn(t, "session", func(t *testing.T, l *lab) {
		port, outside, main := listen(t, "127.0.0.1"), listen(t, hostAddress), listen(t, host.Uplink)
		port6, main6 := listen(t, "::1"), listen(t, hostIPv6)
		first := l.ready(t, l.spec("first", onNetwork(network.User)))
		second := l.ready(t, l.spec("second", onNetwork(network.User), func(s *vm.Spec) { s.HostAccess = true }))
		for _, guest := range []*vm.Started{first, second} {
			if len(guest.Warnings) > 0 {
				t.Errorf("warnings: %q", guest.Warnings)
			}
			if !reachesAtLast(t, guest, hostAddress, outside) {
				t.Errorf("%s does not reach the host by its own address", guest.Name())
			}
		}
		if !reachesAtLast(t, second, host.Uplink, main) {
			t.Error("a guest with host access does not reach the host by its main address")
		}
		if reaches(t, first, host.Uplink, main) {
			t.Error("a guest without host access reaches the host by its main address")
		}
		_, gateway := addressIn(t, first)
		for _, guest := range []*vm.Started{first, second} {
			own, gateway := addressIn(t, guest)
			if (own == host.Uplink) != (guest == first) {
				t.Errorf("%s has the address %s", guest.Name(), own)
			}
			for _, address := range []string{"127.0.0.1", gateway, own, "169.254.1.1"} {
				if reaches(t, guest, address, port) {
					t.Errorf("%s reaches the host's 127.0.0.1 by %s", guest.Name(), address)
				}
			}
		}
		checkIPv6(t, first, false, port6, main6)
		checkIPv6(t, second, true, port6, main6)
		// The forwarded ports of SSH are on the loopback address, too.
		_, forwarded, _ := net.SplitHostPort(second.Record().Address)
		if greetsAt(t, first, gateway, forwarded) {
			t.Error("one guest reaches the other by its forwarded port")
		}
	})
}

// A host with systemd-resolved, which listens on the loopback address, has guests
// that find names all the same.
func TestUserNetworkFindsNames(t *testing.T) {
	systemOnly(t, func(t *testing.T, l *lab) {
		server, err := net.ListenPacket("udp4", hostAddress+":53")
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		go answerQueries(server)
		conf := filepath.Join(l.dir, "resolv.conf")
		const uplinks = "/run/systemd/resolve/resolv.conf"
		if err := os.MkdirAll(filepath.Dir(uplinks), 0o755); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(filepath.Dir(uplinks))
		for path, server := range map[string]string{conf: "127.0.0.53", uplinks: hostAddress} {
			if err := os.WriteFile(path, []byte("nameserver "+server+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		target, err := filepath.EvalSymlinks("/etc/resolv.conf")
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(conf, target, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(target, unix.MNT_DETACH)

		guest := l.ready(t, l.spec("names", onNetwork(network.User)))
		out, _ := script(t, guest, "cat /etc/resolv.conf; nslookup -type=a name.example")
		if !strings.Contains(out, "203.0.113.7") {
			t.Errorf("the guest finds no name:\n%s", out)
		}
	})
}

// answerQueries answers every query of DNS with the address 203.0.113.7.
func answerQueries(server net.PacketConn) {
	query := make([]byte, 1500)
	for {
		n, client, err := server.ReadFrom(query)
		if err != nil {
			return
		}
		answer := append([]byte(nil), query[:n]...)
		answer[2], answer[3] = 0x81, 0x80 // a response, recursion desired and available
		answer[7] = 1                     // with one answer: the name of the question, A, IN, for a minute
		answer = append(answer, 0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 203, 0, 113, 7)
		server.WriteTo(answer, client)
	}
}

// On a libvirt network guests share a bridge, and must not see each other there,
// whatever they do, nor take each other's addresses.
func TestLibvirtNetwork(t *testing.T) {
	systemOnly(t, func(t *testing.T, l *lab) {
		root := asRoot.of(t, l)
		first, second := l.ready(t, l.spec("first", root)), l.ready(t, l.spec("second"))
		for _, guest := range []*vm.Started{first, second} {
			if len(guest.Warnings) > 0 {
				t.Errorf("warnings: %q", guest.Warnings)
			}
		}
		checkFilter(t, l, first)
		own, gateway := addressIn(t, first)
		address, _ := addressIn(t, second)
		loopback, bridge := listen(t, "127.0.0.1"), listen(t, gateway)
		if !reachesAtLast(t, first, gateway, bridge) {
			t.Error("a guest does not reach the host by the bridge's address")
		}
		for _, to := range []string{"127.0.0.1", gateway} {
			if reaches(t, first, to, loopback) {
				t.Errorf("a guest reaches the host's 127.0.0.1 by %s", to)
			}
		}
		if !greets(t, first, own) {
			t.Error("a guest does not reach itself")
		}
		for name, trick := range map[string]string{
			"at once":                "",
			"by way of the gateway":  "ip route add " + address + " via " + gateway,
			"with another's address": "ip addr add 192.168.122.250/24 dev eth0; ip route add " + address + " dev eth0 src 192.168.122.250",
		} {
			script(t, first, "ip route del "+address+"; "+trick)
			if greets(t, first, address) {
				t.Errorf("one guest reaches the other %s", name)
			}
		}
		// A guest that takes the other's address must not get what is the other's.
		script(t, first, "ip addr add "+address+"/24 dev eth0; arping -c 2 -U -I eth0 "+address)
		login(t, l, second)
		t.Logf("%s was %s, %s was %s", first.Name(), own, second.Name(), address)
		checkFilterGoes(t, l, "first", "second")
	})
}

// checkFilterGoes removes the machines. The filter goes with the last one.
func checkFilterGoes(t *testing.T, l *lab, machines ...string) {
	t.Helper()
	filters := func() bool { return strings.Contains(l.virsh(t, "nwfilter-list"), "gitlab-sardine-executor") }
	for i, name := range machines {
		if !filters() {
			t.Errorf("with %d machines there is no filter", len(machines)-i)
		}
		spec := l.spec(name)
		if err := removal.Remove(t.Context(), l.host, spec.Name, spec.Place); err != nil {
			t.Fatal(err)
		}
	}
	if filters() {
		t.Error("there is a filter, and no machine")
	}
}

// login finds the guest as a later stage does, and runs something.
func login(t *testing.T, l *lab, guest instance) {
	t.Helper()
	found, err := vm.Find(t.Context(), l.host, guest.Name(), filepath.Join(l.dir, "jobs", guest.Name()))
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	if err := found.Connect(t.Context(), guestLogin); err != nil {
		t.Fatalf("log in to %s again: %v", guest.Name(), err)
	}
	if out, _ := script(t, found, "echo here"); out != "here\n" {
		t.Errorf("%s said %q", guest.Name(), out)
	}
}
