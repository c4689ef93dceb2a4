package registry

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/containers/image/v5/docker/reference"
	"github.com/containers/image/v5/pkg/docker/config"
	"github.com/containers/image/v5/types"
	"github.com/containers/storage/pkg/homedir"

	"gitlab-sardine-executor/oci"
)

// Credentials say where to look for the password of a registry, in this order; the first
// match wins. The zero value means the usual auth files of this user. Credentials are never
// written to disk, and print as "[redacted]".
type Credentials struct {
	// AuthConfig is the text of a Docker config.json: GitLab's DOCKER_AUTH_CONFIG.
	// Only its "auths" are used: a job must not choose a credential helper, which is a
	// program on the host.
	AuthConfig string
	// AuthFile is the administrator's auth file; empty for the files that skopeo
	// and podman read (REGISTRY_AUTH_FILE, $XDG_RUNTIME_DIR/containers/auth.json,
	// ~/.docker/config.json).
	AuthFile string
	// Accounts come last: those that GitLab provides for the job.
	Accounts []Account
	// Insecure accepts plain HTTP and untrusted certificates from every registry. It is
	// for commands that administrators run, never for jobs. registries.conf can mark
	// single registries insecure.
	Insecure bool
}

// An Account is a user name and a password for one registry.
type Account struct {
	// Registry is HOST[:PORT].
	Registry string
	Username string
	Password string `json:"-"`
}

const redacted = "[redacted]"

// String hides the passwords.
func (Credentials) String() string { return redacted }

// GoString hides the passwords.
func (Credentials) GoString() string { return redacted }

// LogValue hides the passwords.
func (Credentials) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON hides the passwords.
func (Credentials) MarshalJSON() ([]byte, error) { return json.Marshal(redacted) }

// String hides the password.
func (a Account) String() string { return a.Username + "@" + a.Registry }

// GoString hides the password.
func (a Account) GoString() string { return a.String() }

// LogValue hides the password.
func (a Account) LogValue() slog.Value { return slog.StringValue(a.String()) }

// environment returns the configuration of this user for containers/image. The variables
// are those of skopeo and podman; the library does not read them itself.
func (c Credentials) environment() *types.SystemContext {
	sys := &types.SystemContext{
		AuthFilePath:             cmp.Or(c.AuthFile, os.Getenv("REGISTRY_AUTH_FILE")),
		SystemRegistriesConfPath: os.Getenv("CONTAINERS_REGISTRIES_CONF"),
		DockerRegistryUserAgent:  "gitlab-sardine-executor",
	}
	if c.Insecure {
		sys.DockerInsecureSkipTLSVerify = types.OptionalBoolTrue
	}
	return sys
}

// An account is a password that was found, or none.
type account struct {
	auth types.DockerAuthConfig
	// from says where it was found; nil if there is none.
	from func() string
}

// String describes the account for error messages, without the password.
func (a account) String() string {
	switch {
	case a.auth == types.DockerAuthConfig{}:
		return "asked without a password: none was found for this registry"
	case a.auth.IdentityToken != "":
		return fmt.Sprintf("asked with the identity token of %s", a.from())
	}
	return fmt.Sprintf("asked as %s, with the password of %s", a.auth.Username, a.from())
}

// accountFor returns the account for place, which is named or a mirror of it. Credentials of
// a job are only used for the host that they name, never for a mirror.
func (c Credentials) accountFor(sys *types.SystemContext, named, place reference.Named) (account, error) {
	if reference.Domain(place) != reference.Domain(named) {
		return storedAccount(sys, place)
	}
	if auth, ok, err := lookupAuthConfig(c.AuthConfig, named); err != nil || ok {
		return account{auth, func() string { return "DOCKER_AUTH_CONFIG" }}, err
	}
	if found, err := storedAccount(sys, named); err != nil || found.auth != (types.DockerAuthConfig{}) {
		return found, err
	}
	for _, a := range c.Accounts {
		if registryHost(a.Registry) == reference.Domain(named) {
			auth := types.DockerAuthConfig{Username: a.Username, Password: a.Password}
			return account{auth, func() string { return "the job (from GitLab)" }}, nil
		}
	}
	return account{}, nil
}

// storedAccount returns the account for an image from the auth files and credential helpers
// of this user.
func storedAccount(sys *types.SystemContext, named reference.Named) (account, error) {
	auth, err := config.GetCredentialsForRef(sys, named)
	if err != nil {
		return account{}, fmt.Errorf("reading the registry credentials of this user: %w", err)
	}
	if auth == (types.DockerAuthConfig{}) {
		return account{}, nil
	}
	return account{auth, func() string { return storedIn(sys, named, auth) }}, nil
}

// storedIn finds the file that has an account; the library does not tell.
func storedIn(sys *types.SystemContext, named reference.Named, auth types.DockerAuthConfig) string {
	files := []string{sys.AuthFilePath}
	if sys.AuthFilePath == "" {
		files = defaultAuthFiles()
	}
	for _, file := range files {
		only := *sys
		only.AuthFilePath = file
		if _, err := os.Stat(file); err != nil {
			continue
		}
		if found, err := config.GetCredentialsForRef(&only, named); err == nil && found == auth {
			return file
		}
	}
	return "a credential helper or ~/.dockercfg"
}

// defaultAuthFiles returns the files of containers-auth.json(5), in order.
func defaultAuthFiles() []string {
	home := homedir.Get()
	runtime := filepath.Join(cmp.Or(os.Getenv("XDG_RUNTIME_DIR"), fmt.Sprintf("/run/containers/%d", os.Getuid())))
	if os.Getenv("XDG_RUNTIME_DIR") != "" {
		runtime = filepath.Join(runtime, "containers")
	}
	return []string{
		filepath.Join(runtime, "auth.json"),
		filepath.Join(cmp.Or(os.Getenv("XDG_CONFIG_HOME"), filepath.Join(home, ".config")), "containers/auth.json"),
		filepath.Join(cmp.Or(os.Getenv("DOCKER_CONFIG"), filepath.Join(home, ".docker")), "config.json"),
	}
}

// lookupAuthConfig finds the longest key of a Docker config.json that is the
// image's name or a parent of it (containers-auth.json(5)).
func lookupAuthConfig(text string, named reference.Named) (types.DockerAuthConfig, bool, error) {
	if strings.TrimSpace(text) == "" {
		return types.DockerAuthConfig{}, false, nil
	}
	var file authConfig
	// Errors of encoding/json may quote the text, which contains passwords.
	if json.Unmarshal([]byte(text), &file) != nil {
		return types.DockerAuthConfig{}, false, fmt.Errorf("%w: DOCKER_AUTH_CONFIG is not the JSON of a Docker config file", oci.ErrDenied)
	}
	best := ""
	for key := range file.Auths {
		if matchesName(registryKey(key), named) && len(key) > len(best) {
			best = key
		}
	}
	if best == "" {
		return types.DockerAuthConfig{}, false, nil
	}
	entry := file.Auths[best]
	auth := types.DockerAuthConfig{Username: entry.Username, Password: entry.Password, IdentityToken: entry.IdentityToken}
	if entry.Auth != "" {
		username, password, ok := entry.login()
		if !ok {
			return types.DockerAuthConfig{}, false, fmt.Errorf("%w: DOCKER_AUTH_CONFIG: auths[%q].auth is not the base64 of user:password", oci.ErrDenied, best)
		}
		auth.Username, auth.Password = username, password
	}
	return auth, true, nil
}

// authConfig is the part of a Docker config.json that is used.
type authConfig struct {
	Auths map[string]authEntry `json:"auths"`
}

type authEntry struct {
	Auth          string `json:"auth"`
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
}

// login decodes the field auth.
func (e authEntry) login() (username, password string, ok bool) {
	plain, err := base64.StdEncoding.DecodeString(e.Auth)
	username, password, found := strings.Cut(string(plain), ":")
	return username, strings.TrimRight(password, "\x00"), found && err == nil
}

// SecretsIn returns the passwords and tokens in the text of a Docker config.json; none if
// the text is not valid.
func SecretsIn(text string) []string {
	var file authConfig
	if json.Unmarshal([]byte(text), &file) != nil {
		return nil
	}
	var secrets []string
	for _, entry := range file.Auths {
		_, password, _ := entry.login()
		for _, secret := range []string{entry.Auth, password, entry.Password, entry.IdentityToken} {
			if secret != "" {
				secrets = append(secrets, secret)
			}
		}
	}
	return secrets
}

func matchesName(key string, named reference.Named) bool {
	return key == named.Name() || strings.HasPrefix(named.Name(), key+"/")
}

// registryKey normalizes a key of "auths": Docker writes "https://index.docker.io/v1/" for
// docker.io.
func registryKey(key string) string {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	for _, suffix := range []string{"/", "/v1", "/v2"} {
		key = strings.TrimSuffix(key, suffix)
	}
	if key == "index.docker.io" {
		return "docker.io"
	}
	return key
}

func registryHost(registry string) string {
	host, _, _ := strings.Cut(registryKey(registry), "/")
	return host
}
