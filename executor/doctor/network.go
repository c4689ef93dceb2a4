package doctor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/vm/firmware"
	"gitlab-sardine-executor/vm/network/passt"
	"gitlab-sardine-executor/vm/virt"
)

// firmware checks whether machines can boot by UEFI.
func (d *doctor) firmware(ctx context.Context, host *virt.Host) {
	has, err := host.HasUEFI(ctx, "x86_64")
	if err != nil {
		return // not a host for such machines: the check of an image says more
	}
	if has {
		d.add("firmware", OK, "BIOS and UEFI")
		return
	}
	level, effect := Warning, "images that boot by UEFI alone fail"
	for match, r := range d.settings.All() {
		if r.Firmware != firmware.UEFI && r.Firmware != firmware.Secure {
			continue
		}
		effect = fmt.Sprintf("firmware is %q in a section of the settings, and its machines fail", r.Firmware)
		if match == "" {
			level, effect = Error, fmt.Sprintf("firmware is %q, and all machines fail", r.Firmware)
		}
		break
	}
	d.advise("firmware", level, "apt install ovmf", "no UEFI: %s: %s", effect, firmware.Missing("x86_64"))
}

// networks checks the networks that machines can have.
func (d *doctor) networks(ctx context.Context, host *virt.Host) {
	done := make(map[string]bool)
	for match, r := range d.settings.All() {
		key := fmt.Sprint(r.Network, r.HostAccess)
		if done[key] {
			continue
		}
		done[key] = true
		if r.Network == config.UserNetwork {
			d.userNetwork(ctx, r)
			continue
		}
		described, err := host.Network(ctx, r.Network)
		if err != nil {
			level := Warning
			if match == "" {
				level = Error
			}
			name := quote(r.Network)
			d.advise("network", level, "virsh net-start "+name+" && virsh net-autostart "+name, "%v", err)
			continue
		}
		d.add("network", OK, "libvirt network %s; guests reach this host at the addresses of its bridge and network cards", r.Network)
		if host.System() {
			d.forwarding(ctx, described)
		}
	}
}

func (d *doctor) userNetwork(ctx context.Context, r config.Resolved) {
	own := strings.Join(passt.HostAddresses(), " and ")
	switch {
	case own == "":
		d.add("network", Warning, "user: this host has no default route, which passt needs: guests get QEMU's slirp, which lets them reach this host's loopback")
	case !passt.Installed():
		d.add("network", OK, "user: a private network for each guest, by QEMU's slirp")
	case r.HostAccess:
		d.add("network", OK, "user: a private network for each guest, which reaches this host at %s (host_access = true)", own)
	default:
		d.add("network", OK, "user: a private network for each guest, which does not reach this host at %s (host_access = true would let it)", own)
	}
	if program, err := exec.LookPath("passt"); err == nil && !passt.BlocksLoopback(ctx, program) {
		d.add("passt", Warning, "this passt is so old (it has no --map-host-loopback) that root in a guest can reach services on this host's loopback address; install a newer one (Debian 13), or use a libvirt network or a packet filter (docs/network.md)")
	}
}

// forwarding checks whether the packet filter lets the guests of a network out. Docker sets
// the policy of the chain FORWARD to DROP. The rules of libvirt precede it if they are in
// the same table, which those of libvirt's nftables backend are not.
func (d *doctor) forwarding(ctx context.Context, n *libvirtxml.Network) {
	if n.Bridge == nil || n.Bridge.Name == "" || n.Forward == nil {
		return // an isolated network, or a bridge that libvirt does not manage
	}
	rules, err := iptables(ctx)
	if err != nil {
		return // no iptables, or not root
	}
	bridge := n.Bridge.Name
	if letsThrough(rules, bridge) {
		return
	}
	chain := "FORWARD"
	if strings.Contains(rules, "\n-N DOCKER-USER\n") {
		chain = "DOCKER-USER" // Docker leaves this one to the administrator
	}
	command := fmt.Sprintf("iptables -I %s -i %s -j ACCEPT && iptables -I %s -o %s -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
		chain, bridge, chain, bridge)
	d.advise("network", Error, command,
		"the chain FORWARD of iptables drops what guests of the network %s send (Docker sets that policy): they reach nothing beyond this host; make the rules permanent, too", n.Name)
}

// iptables returns the rules of the table filter, as commands.
func iptables(ctx context.Context) (string, error) {
	program, err := exec.LookPath("iptables")
	if err != nil {
		program = "/usr/sbin/iptables"
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-w", "2", "-S")
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.Output()
	return "\n" + string(out), err
}

// letsThrough reports whether the chain FORWARD accepts by default, or has rules, also in the
// chains that it calls, that accept packets from and to the bridge.
func letsThrough(rules, bridge string) bool {
	if !strings.Contains(rules, "\n-P FORWARD DROP\n") {
		return true
	}
	in, out := false, false
	seen, chains := map[string]bool{}, []string{"FORWARD"}
	for len(chains) > 0 {
		chain := chains[0]
		chains = chains[1:]
		if seen[chain] {
			continue
		}
		seen[chain] = true
		for line := range strings.Lines(rules) {
			field := strings.Fields(line)
			if len(field) < 4 || field[0] != "-A" || field[1] != chain {
				continue
			}
			switch target := after(field, "-j"); {
			case target != "ACCEPT":
				chains = append(chains, target)
			case after(field, "-i") == bridge && after(field, "-o") == "":
				in = true
			case after(field, "-o") == bridge && after(field, "-i") == "":
				out = true
			case len(field) == 4: // accepts everything
				return true
			}
		}
	}
	return in && out
}

// after returns the field that follows an option; empty if the option is not there or negated.
func after(fields []string, option string) string {
	i := slices.Index(fields, option)
	if i < 0 || i+1 >= len(fields) || i > 0 && fields[i-1] == "!" {
		return ""
	}
	return fields[i+1]
}
