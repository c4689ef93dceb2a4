package testbed

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// A Registry is Debian's docker-registry on a port of 127.0.0.1.
type Registry struct {
	// Host is its address, "127.0.0.1:PORT", as references name it.
	Host string
	// RegistriesConf is the path of a registries.conf that knows how to talk to
	// it, for CONTAINERS_REGISTRIES_CONF. See [Mode.Trust] for another way.
	RegistriesConf string
	// CA is the path of the certificate that signed the registry's; empty without
	// TLS.
	CA string

	dir      string
	username string
	password string
	tls      bool
	client   *http.Client
	stop     func()
}

// A RegistryOption changes what a registry asks of its clients.
type RegistryOption func(*Registry)

// WithLogin lets only one user in, who is authenticated by htpasswd.
func WithLogin(username, password string) RegistryOption {
	return func(r *Registry) { r.username, r.password = username, password }
}

// WithTLS gives the registry a certificate that nobody knows: see [Registry.CA].
func WithTLS() RegistryOption {
	return func(r *Registry) { r.tls = true }
}

// StartRegistry starts an empty registry, which ends with the test.
func StartRegistry(t testing.TB, options ...RegistryOption) *Registry {
	t.Helper()
	dir, err := os.MkdirTemp("", "registry")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	// The users of modes must be able to read registries.conf.
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r := &Registry{Host: freeAddress(t), dir: dir, client: &http.Client{Timeout: 5 * time.Second}}
	for _, option := range options {
		option(r)
	}
	if r.tls {
		r.makeCertificate(t)
	}
	r.RegistriesConf = r.write(t, "registries.conf", fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = %t\n", r.Host, !r.tls))
	r.write(t, "config.yml", r.config(t))
	r.Start(t)
	t.Cleanup(func() { r.Stop() })
	return r
}

// Image is the reference of an image in the registry.
func (r *Registry) Image(nameAndTag string) string { return r.Host + "/" + nameAndTag }

// Config is the digest of an image's config, for a registry without a login.
func (r *Registry) Config(t testing.TB, name, tag string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.Host+"/v2/"+name+"/manifests/"+tag, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json")
	response, err := r.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var manifest struct{ Config struct{ Digest string } }
	if err := json.NewDecoder(response.Body).Decode(&manifest); err != nil || manifest.Config.Digest == "" {
		t.Fatalf("the manifest of %s:%s: %s, %v", name, tag, response.Status, err)
	}
	return manifest.Config.Digest
}

// Log is what the registry wrote: a line for each request, among others.
func (r *Registry) Log(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(r.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Start starts the registry again after [Registry.Stop], with what it holds.
func (r *Registry) Start(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(r.dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("docker-registry", "serve", filepath.Join(r.dir, "config.yml"))
	cmd.Stdout, cmd.Stderr = log, log
	exited, err := startForLife(cmd)
	if err != nil {
		t.Fatalf("start the registry: %v (make deps installs docker-registry)", err)
	}
	r.stop = func() {
		_ = cmd.Process.Kill()
		<-exited
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for !r.answers(ctx) {
		select {
		case <-exited:
			t.Fatalf("the registry has ended:\n%s", r.Log(t))
		case <-ctx.Done():
			r.stop()
			t.Fatalf("the registry does not answer:\n%s", r.Log(t))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// startForLife starts a command that the kernel kills when this process ends,
// and says when it has exited. The kernel's promise is about the thread that
// started it, so that one waits too.
func startForLife(cmd *exec.Cmd) (exited <-chan struct{}, err error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	return ended, <-started
}

// Stop ends the registry; what it holds stays.
func (r *Registry) Stop() { r.stop() }

func (r *Registry) answers(ctx context.Context) bool {
	scheme := "http"
	if r.tls {
		scheme = "https"
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+r.Host+"/v2/", nil)
	if err != nil {
		return false
	}
	response, err := r.client.Do(request)
	if err != nil {
		return false
	}
	defer response.Body.Close()
	return response.StatusCode == http.StatusOK || response.StatusCode == http.StatusUnauthorized
}

func (r *Registry) config(t testing.TB) string {
	t.Helper()
	var text strings.Builder
	fmt.Fprintf(&text, "version: 0.1\nlog: {level: info}\nstorage:\n  filesystem: {rootdirectory: %q}\n  delete: {enabled: true}\n", filepath.Join(r.dir, "storage"))
	fmt.Fprintf(&text, "http:\n  addr: %q\n", r.Host)
	if r.tls {
		fmt.Fprintf(&text, "  tls: {certificate: %q, key: %q}\n", r.CA, filepath.Join(r.dir, "key.pem"))
	}
	if r.username != "" {
		hash, err := bcrypt.GenerateFromPassword([]byte(r.password), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		path := r.write(t, "htpasswd", r.username+":"+string(hash)+"\n")
		fmt.Fprintf(&text, "auth:\n  htpasswd: {realm: registry, path: %q}\n", path)
	}
	return text.String()
}

// makeCertificate makes a certificate that signs itself.
func (r *Registry) makeCertificate(t testing.TB) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "test registry"},
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	r.CA = r.write(t, "ca.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})))
	r.write(t, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
	pool := x509.NewCertPool()
	parsed, err := x509.ParseCertificate(certificate)
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(parsed)
	r.client.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
}

func (r *Registry) write(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// freeAddress is an address of 127.0.0.1 that nobody listened on a moment ago.
func freeAddress(t testing.TB) string {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}
