package doctor

import "testing"

// The rules as iptables -S prints them.
func TestLetsThrough(t *testing.T) {
	const docker = `
-P INPUT ACCEPT
-P FORWARD DROP
-P OUTPUT ACCEPT
-N DOCKER
-N DOCKER-USER
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
`
	for _, c := range []struct {
		name, rules string
		want        bool
	}{
		{"no Docker", "\n-P FORWARD ACCEPT\n", true},
		{"Docker alone", docker, false},
		{"libvirt's chains", docker + "-A FORWARD -j LIBVIRT_FWI\n-A FORWARD -j LIBVIRT_FWO\n" +
			"-A LIBVIRT_FWI -d 192.168.122.0/24 -o virbr0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n" +
			"-A LIBVIRT_FWO -s 192.168.122.0/24 -i virbr0 -j ACCEPT\n", true},
		{"libvirt's chains, that are not called", docker +
			"-A LIBVIRT_FWI -o virbr0 -j ACCEPT\n-A LIBVIRT_FWO -i virbr0 -j ACCEPT\n", false},
		{"another bridge", docker + "-A FORWARD -i virbr1 -j ACCEPT\n-A FORWARD -o virbr1 -j ACCEPT\n", false},
		{"between guests", docker + "-A FORWARD -i virbr0 -o virbr0 -j ACCEPT\n-A FORWARD -o virbr0 -j ACCEPT\n", false},
		{"one way", docker + "-A DOCKER-USER -i virbr0 -j ACCEPT\n", false},
		{"our command", docker + "-A DOCKER-USER -i virbr0 -j ACCEPT\n-A DOCKER-USER -o virbr0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n", true},
		{"all but the bridge", docker + "-A FORWARD ! -i virbr0 -j ACCEPT\n-A FORWARD ! -o virbr0 -j ACCEPT\n", false},
		{"everything", docker + "-A FORWARD -j ACCEPT\n", true},
		{"chains in a circle", docker + "-A DOCKER-USER -j DOCKER\n-A DOCKER -j DOCKER-USER\n", false},
	} {
		if got := letsThrough(c.rules, "virbr0"); got != c.want {
			t.Errorf("%s: got %v", c.name, got)
		}
	}
}
