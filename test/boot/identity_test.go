//go:build boot

package boot

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/network"
	"gitlab-sardine-executor/vm/network/dhcp"
	"gitlab-sardine-executor/vm/removal"
	"gitlab-sardine-executor/vm/virt"
)

// twinClientID is the DHCP client identifier of every twin.
const twinClientID = "ff00112233000200000ab11122334455667788"

// twin is a guest that was installed once and then exported: each machine of it has
// the same DHCP client identifier, the same SSH host key and the same password. Its
// user is root. An address in the kernel's argument sardine.address makes it take that
// one without asking.
func twin(t testing.TB, l *lab) variant {
	t.Helper()
	run(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", l.guest, filepath.Join(l.dir, "guest.raw"))
	init := run(t, "sh", "-c", `cd "$1" && mcopy -n -i guest.raw ::initrd first && lz4 -d -q -c first | cpio --quiet -i --to-stdout init`, "sh", l.dir)
	const dhcp, keys = "udhcpc -i eth0", "for type in ed25519 ecdsa; do"
	text := strings.Replace(init, dhcp,
		"fixed=$(sed -n 's/.*sardine.address=\\([0-9.]*\\).*/\\1/p' /proc/cmdline)\n"+
			"[ -z \"$fixed\" ] || ip addr add $fixed/24 dev eth0\n"+
			"[ -n \"$fixed\" ] || "+dhcp+" -C -x 0x3d:"+twinClientID, 1)
	text = strings.Replace(text, keys, "for type in; do", 1)
	if strings.Contains(text, keys) || !strings.Contains(text, twinClientID) {
		t.Fatal("the guest's init is not what it was")
	}
	files := map[string]string{
		"init":                                 text,
		"etc/dropbear/dropbear_ecdsa_host_key": dropbearKey(t),
	}
	for path, content := range asRoot.files {
		files[path] = content
	}
	return variant{files: files}
}

// dropbearKey is an ECDSA key as dropbear keeps it, the same each time.
func dropbearKey(t testing.TB) string {
	t.Helper()
	seed := sha256.Sum256([]byte("the host key of every test guest"))
	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), seed[:])
	if err != nil {
		t.Fatal(err)
	}
	point, err := private.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return string(ssh.Marshal(struct {
		Name, Curve, Point string
		Private            *big.Int
	}{"ecdsa-sha2-nistp256", "nistp256", string(point), new(big.Int).SetBytes(seed[:])}))
}

// narrow makes a libvirt network whose DHCP server has three addresses, gone after the
// test.
func narrow(t testing.TB, l *lab) (name string, gateway netip.Addr) {
	t.Helper()
	return narrowTo(t, l, 3)
}

// narrowTo is a network with that many addresses.
func narrowTo(t testing.TB, l *lab, addresses int) (name string, gateway netip.Addr) {
	t.Helper()
	name, gateway = "narrow", netip.MustParseAddr("192.168.123.1")
	file := filepath.Join(l.dir, name+".xml")
	if err := os.WriteFile(file, []byte(fmt.Sprintf(`<network xmlns:dnsmasq="http://libvirt.org/schemas/network/dnsmasq/1.0">
  <name>%s</name><bridge name="virbr1" stp="off" delay="0"/><forward/>
  <ip address="%s" netmask="255.255.255.0"><dhcp><range start="192.168.123.10" end="192.168.123.%d"/></dhcp></ip>
  <dnsmasq:options><dnsmasq:option value="no-ping"/></dnsmasq:options>
</network>`, name, gateway, 9+addresses)), 0o644); err != nil {
		t.Fatal(err)
	}
	l.virsh(t, "net-create", file)
	t.Cleanup(func() { l.virsh(t, "net-destroy", name) })
	return name, gateway
}

// mark has a machine remember whose it is.
func mark(t *testing.T, guest instance) {
	t.Helper()
	script(t, guest, "echo "+guest.Name()+" >/tmp/me")
}

// isStill logs in as a later stage does, and looks whose machine it is.
func isStill(t *testing.T, l *lab, guest instance) {
	t.Helper()
	found := l.find(t, guest)
	if err := found.Connect(t.Context(), guestLogin); err != nil {
		t.Errorf("log in to %s again: %v", guest.Name(), err)
		return
	}
	if out, _ := script(t, found, "cat /tmp/me"); out != guest.Name()+"\n" {
		t.Errorf("what is for %s runs in the machine of %q", guest.Name(), out)
	}
}

// find finds a machine as a later stage does.
func (l *lab) find(t *testing.T, guest instance) *vm.Instance {
	t.Helper()
	found, err := vm.Find(t.Context(), l.host, guest.Name(), filepath.Join(l.dir, "jobs", guest.Name()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { found.Close() })
	return found
}

func hostPart(guest instance) string {
	address, _, _ := strings.Cut(guest.Record().Address, ":")
	return address
}

// Machines of an image that brings everything by which one could know a guest each have an
// address of their own, and scripts run in the right one: whatever the other machine does,
// and if another answers under the address.
func TestTwins(t *testing.T) {
	systemOnly(t, func(t *testing.T, l *lab) {
		name, gateway := narrow(t, l)
		variant := twin(t, l)
		image := variant.of(t, l)
		first := l.ready(t, l.spec("first", image, onNetwork(name)))
		mark(t, first)
		second := l.ready(t, l.spec("second", image, onNetwork(name)))
		mark(t, second)
		if first.Record().HostKey != second.Record().HostKey {
			t.Error("they have different host keys, so that the rest shows nothing")
		}
		if first.Record().Address == second.Record().Address {
			t.Errorf("both have the address %s", first.Record().Address)
		}
		isStill(t, l, first)
		isStill(t, l, second)
		// And again, when each has asked for its address once more.
		for _, guest := range []*vm.Started{first, second} {
			script(t, guest, "udhcpc -i eth0 -n -q -t 5 -T 1 -C -x 0x3d:"+twinClientID+" -s /usr/share/udhcpc/script")
			isStill(t, l, first)
			isStill(t, l, second)
		}
		checkTheft(t, l, first, second, gateway)
		checkContested(t, l, first, variant, name)
	})
}

// checkTheft has a guest ask for its neighbour's address, as its neighbour would: it does
// not get what is the neighbour's.
func checkTheft(t *testing.T, l *lab, victim, thief instance, gateway netip.Addr) {
	t.Helper()
	address := hostPart(victim)
	for what, trick := range map[string]string{
		"its client identifier": "udhcpc -i eth0 -n -q -t 5 -T 1 -C -x 0x3d:" + twinClientID + " -r " + address + " -s /usr/share/udhcpc/script",
		"its release":           "udhcpc -i eth0 -n -q -t 5 -T 1 -R -C -x 0x3d:" + twinClientID + " -s /usr/share/udhcpc/script; udhcpc -i eth0 -n -q -t 5 -T 1 -s /usr/share/udhcpc/script",
		"ARP":                   "ip addr add " + address + "/24 dev eth0; arping -c 3 -w 3 -U -I eth0 " + address + "; ping -c 1 -W 1 -I " + address + " " + gateway.String(),
	} {
		out, _ := script(t, thief, "exec 2>&1; "+trick)
		t.Logf("by %s:\n%s", what, out)
		isStill(t, l, victim)
		isStill(t, l, thief)
		script(t, thief, "ip addr del "+address+"/24 dev eth0")
	}
}

// checkContested has a machine answer under the address of a guest, whatever let it: it is
// not given what is for the guest, although it has the guest's host key and password.
func checkContested(t *testing.T, l *lab, guest instance, image variant, networkName string) {
	t.Helper()
	mac := nicOf(t, l, guest.Name())
	// Another takes its place. No filter keeps it from that.
	l.virsh(t, "domif-setlink", guest.Name(), mac, "down")
	image.arguments = "sardine.address=" + hostPart(guest)
	other := l.stranger(t, image, networkName)
	found := l.find(t, guest)
	err := found.Connect(t.Context(), guestLogin)
	if !errors.Is(err, network.ErrContested) {
		out, _ := script(t, found, "cat /tmp/me; ip addr show eth0")
		t.Fatalf("connecting gives %v\n%s", err, out)
	}
	for _, want := range []string{hostPart(guest), mac, other} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not name %s: %v", want, err)
		}
	}
	t.Log(err)
}

// stranger starts a machine that is nobody's job, without a filter, and returns its MAC
// address.
func (l *lab) stranger(t *testing.T, image variant, network string) (mac string) {
	t.Helper()
	spec := vm.Spec{}
	dir := filepath.Join(l.dir, "stranger")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	image.of(t, &lab{dir: dir, guest: l.guest})(&spec)
	mac = "52:54:00:00:00:99"
	file := filepath.Join(dir, "stranger.xml")
	if err := os.WriteFile(file, []byte(fmt.Sprintf(`<domain type="qemu"><name>stranger</name><memory unit="MiB">256</memory><vcpu>1</vcpu>
<os><type arch="x86_64" machine="q35">hvm</type></os><features><acpi/></features>
<devices><disk type="file" device="disk"><driver name="qemu" type="raw"/><source file="%s"/><target dev="vda" bus="virtio"/></disk>
<interface type="network"><mac address="%s"/><source network="%s"/><model type="virtio"/></interface>
<rng model="virtio"><backend model="random">/dev/urandom</backend></rng></devices></domain>`, spec.Disks[0].Path, mac, network)), 0o644); err != nil {
		t.Fatal(err)
	}
	l.virsh(t, "create", file)
	t.Cleanup(func() { l.virsh(t, "destroy", "stranger") })
	return mac
}

// One address is enough for any number of machines, one after another, since what they had
// is given back. At night, three addresses are for ten machines, and then two at a time.
func TestAddressesAreGivenBack(t *testing.T) {
	systemOnly(t, func(t *testing.T, l *lab) {
		machines, addresses := 2, 1
		if nightly {
			machines, addresses = 10, 3
		}
		network, _ := narrowTo(t, l, addresses)
		image := twin(t, l).of(t, l)
		runs := func(name string) error {
			spec := l.spec(name, image, onNetwork(network))
			guest, err := vm.Start(t.Context(), l.host, spec)
			if err != nil {
				return err
			}
			// Its lease does not show that it is up: two twins share a client identifier, and
			// dnsmasq lists only the one that asked last.
			return errors.Join(waitReady(t, guest, guestLogin), guest.Close(),
				removal.Remove(t.Context(), l.host, name, spec.Place))
		}
		for i := range machines {
			if err := runs(fmt.Sprintf("one-%d", i)); err != nil {
				t.Fatalf("machine %d: %v", i, err)
			}
			l.noLease(t, network)
		}
		if !nightly {
			return
		}
		var both sync.WaitGroup
		for _, side := range []string{"left", "right"} {
			both.Go(func() {
				if err := runs(side); err != nil {
					t.Errorf("%s machine: %v", side, err)
				}
			})
		}
		both.Wait()
		l.noLease(t, network)
	})
}

// noLease waits until dnsmasq has taken back what was given back.
func (l *lab) noLease(t *testing.T, network string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		leases := l.virsh(t, "net-dhcp-leases", network)
		if !strings.Contains(leases, "192.168.") {
			return
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("a lease outlives its machine:\n%s", leases)
		}
	}
}

// A machine that finds no address left says so, and those that start at once do not
// come in each other's way.
func TestNoAddressLeft(t *testing.T) {
	systemOnly(t, func(t *testing.T, l *lab) {
		addresses := 1
		if nightly {
			addresses = 3
		}
		network, _ := narrowTo(t, l, addresses)
		results := make(chan error, addresses+1)
		for i := range cap(results) {
			go func() {
				_, err := vm.Start(t.Context(), l.host, l.spec(fmt.Sprintf("at-once-%d", i), onNetwork(network)))
				results <- err
			}()
		}
		failed := 0
		for range cap(results) {
			if err := <-results; err != nil {
				failed++
				t.Log(err)
				if !strings.Contains(err.Error(), "network narrow has no address left") ||
					!strings.Contains(err.Error(), fmt.Sprintf("of the %[1]d that its DHCP server assigns, machines of jobs have %[1]d,", addresses)) {
					t.Errorf("a machine too many: %v", err)
				}
			}
		}
		if failed != 1 {
			t.Errorf("%d of %d machines find no address among %d", failed, cap(results), addresses)
		}
		if macs := regexp.MustCompile(`<host mac='52:54`).FindAllString(l.virsh(t, "net-dumpxml", network), -1); len(macs) != addresses {
			t.Errorf("%d addresses are reserved, want %d", len(macs), addresses)
		}
		for i := range cap(results) {
			spec := l.spec(fmt.Sprintf("at-once-%d", i))
			if err := removal.Remove(t.Context(), l.host, spec.Name, spec.Place); err != nil {
				t.Error(err)
			}
		}
	})
}

// Reservations outlive a restart of libvirt's daemon. Those that no machine has are
// swept, and an administrator's stay.
func TestReservationsAreSwept(t *testing.T) {
	systemOnly(t, func(t *testing.T, l *lab) {
		network, _ := narrow(t, l)
		l.virsh(t, "net-update", network, "add-last", "ip-dhcp-host", "<host mac='52:54:00:11:22:33' name='printer' ip='192.168.123.11'/>", "--live")
		spec := l.spec("kept", onNetwork(network))
		guest := l.start(t, spec)
		killed := l.spec("killed", onNetwork(network))
		l.start(t, killed)
		l.virsh(t, "destroy", killed.Name) // and whoever made it is dead
		restartLibvirtd(t)
		host, err := virt.Open(t.Context(), l.connect())
		if err != nil {
			t.Fatal(err)
		}
		defer host.Close()
		sweep := func(dryRun bool) dhcp.IdleAddress {
			idle, err := dhcp.Sweep(t.Context(), host, dryRun, nil)
			idle = slices.DeleteFunc(idle, func(a dhcp.IdleAddress) bool { return a.Network != network })
			if err != nil || len(idle) != 1 {
				t.Fatalf("a sweep (dry: %t) finds %v, %v; want one address", dryRun, idle, err)
			}
			return idle[0]
		}
		idle := sweep(true)
		if again := sweep(false); again != idle {
			t.Errorf("swept %v, want %v", again, idle)
		}
		left := l.virsh(t, "net-dumpxml", network)
		for _, want := range []string{"192.168.123.11", nicOf(t, l, guest.Name())} {
			if !strings.Contains(left, want) {
				t.Errorf("%s is not reserved any more:\n%s", want, left)
			}
		}
		if strings.Contains(left, "ip='"+idle.Address.String()+"'") {
			t.Errorf("%s is still reserved:\n%s", idle.Address, left)
		}
	})
}

// A sweep may release an idle address after a machine has looked at the network, and before the
// machine claims that address: serve sweeps when it starts, and makes its first machines then.
func TestClaimOfASweptAddress(t *testing.T) {
	systemOnly(t, func(t *testing.T, l *lab) {
		network, _ := narrow(t, l)
		claim := func(plan *dhcp.Plan) *dhcp.Reservation {
			claimed, err := dhcp.Claim(t.Context(), l.host, plan, "machine")
			if err != nil {
				t.Fatal(err)
			}
			if err := claimed.Unlock(); err != nil {
				t.Fatal(err)
			}
			return claimed
		}
		plan := func() *dhcp.Plan {
			described, err := l.host.Network(t.Context(), network)
			if err != nil {
				t.Fatal(err)
			}
			return dhcp.PlanOf(described)
		}
		first := claim(plan())
		before := plan()
		if _, err := dhcp.Sweep(t.Context(), l.host, false, nil); err != nil {
			t.Fatal(err)
		}
		second := claim(before)
		if now := l.virsh(t, "net-dumpxml", network); second.Address != first.Address || !strings.Contains(now, "ip='"+second.Address.String()+"'") {
			t.Errorf("%s, which had %s, is not reserved:\n%s", second.Address, first.Address, now)
		}
	})
}
