package vm

import (
	"net"
	"os"
	"os/exec"
)

// hasPasst says whether the guest's network is passt's, which gives it other addresses
// than QEMU's own does.
func hasPasst() bool {
	_, err := exec.LookPath("passt")
	return err == nil
}

// uplinkAddresses are the addresses from which this host speaks to the world, as
// passt gives them to its guests. Nothing is sent.
func uplinkAddresses() []string {
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

// resolverFiles are what tells passt which name servers to give to its guests.
func resolverFiles() []string {
	var files []string
	for _, path := range []string{resolvConf, uplinkResolvConf} {
		text, _ := os.ReadFile(path)
		files = append(files, string(text))
	}
	return files
}
