package distribution

import (
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containers/image/v5/pkg/tlsclientconfig"
	"github.com/containers/image/v5/types"
	"github.com/containers/storage/pkg/homedir"
)

// tlsConfig is for connections to host, as certs.d names it. A private authority
// that vouches for the registry may vouch for its token service and its storage,
// as with podman; a client certificate is for its own host alone.
func tlsConfig(sys *types.SystemContext, registry, host string, insecure bool) (*tls.Config, error) {
	config := &tls.Config{InsecureSkipVerify: insecure} // as registries.conf says
	names := []string{host}
	if host != registry {
		names = []string{registry, host}
	}
	for _, name := range names {
		config.Certificates = nil
		if err := tlsclientconfig.SetupCertificates(certDir(sys, name), config); err != nil {
			return nil, fmt.Errorf("reading the certificates for %s: %w", name, err)
		}
	}
	return config, nil
}

// certDir is the first directory that holds certificates for a host
// (containers-certs.d(5)).
func certDir(sys *types.SystemContext, host string) string {
	if sys.DockerPerHostCertDirPath != "" {
		return filepath.Join(sys.DockerPerHostCertDirPath, host)
	}
	dir := ""
	for _, parent := range []string{filepath.Join(homedir.Get(), ".config/containers/certs.d"), "/etc/containers/certs.d", "/etc/docker/certs.d"} {
		dir = filepath.Join(parent, host)
		if _, err := os.Stat(dir); err == nil {
			break
		}
	}
	return dir
}
