package ocitest

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"
)

// A dockerRegistry is Debian's docker-registry, with the passwords of one
// htpasswd file and with TLS, on a port of its own.
type dockerRegistry struct {
	Host string
	// ca is the certificate that vouches for the registry.
	Ca string
}

const (
	RegistryUser     = "vagrant"
	RegistryPassword = "corr:ect horse"
)

var listening = regexp.MustCompile(`listening on ([0-9.]+:[0-9]+)`)

func StartDockerRegistry(t *testing.T) dockerRegistry {
	t.Helper()
	dir := t.TempDir()
	Command(t, dir, "htpasswd", "-Bbc", "htpasswd", RegistryUser, RegistryPassword)
	writeCertificate(t, dir)
	config := fmt.Sprintf(`version: 0.1
log: {level: info}
storage: {filesystem: {rootdirectory: %[1]s/storage}}
auth: {htpasswd: {realm: test, path: %[1]s/htpasswd}}
http: {addr: "127.0.0.1:0", tls: {certificate: %[1]s/server.crt, key: %[1]s/server.key}}
`, dir)
	file := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker-registry", "serve", file)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	address := make(chan string, 1)
	go func() {
		defer close(address)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			if m := listening.FindStringSubmatch(lines.Text()); m != nil {
				address <- m[1]
			}
		}
	}()
	select {
	case host, ok := <-address:
		if !ok {
			t.Fatal("docker-registry ended without a word on where it listens")
		}
		return dockerRegistry{Host: host, Ca: filepath.Join(dir, "server.crt")}
	case <-time.After(30 * time.Second):
		t.Fatal("docker-registry does not say where it listens")
	}
	panic("not reached")
}

// writeCertificate makes a certificate for 127.0.0.1 that vouches for itself.
func writeCertificate(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "registry under test"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"server.crt": {Type: "CERTIFICATE", Bytes: cert},
		"server.key": {Type: "PRIVATE KEY", Bytes: raw},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Trust puts the registry's certificate where this user's tools look for it.
func (r dockerRegistry) Trust(t *testing.T) {
	t.Helper()
	dir := filepath.Join(os.Getenv("HOME"), ".config", "containers", "certs.d", r.Host)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cert, err := os.ReadFile(r.Ca)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), cert, 0o644); err != nil {
		t.Fatal(err)
	}
}
