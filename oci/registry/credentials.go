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

// Credentials are what gets us into a registry: the places where its password is
// looked for, in this order; the first that knows the registry wins, and the
// zero value leaves the usual auth files of this user. They are never written to
// disk, and they print as "[redacted]".
type Credentials struct {
	// AuthConfig is the text of a Docker config.json: GitLab's DOCKER_AUTH_CONFIG.
	// Only its "auths" count: a job must not choose a credential helper, which is
	// a program on the host.
	AuthConfig string
	// AuthFile is the administrator's auth file; empty for the files that skopeo
	// and podman read (REGISTRY_AUTH_FILE, $XDG_RUNTIME_DIR/containers/auth.json,
	// ~/.docker/config.json).
	AuthFile string
	// Accounts come last: the job's own, which GitLab hands out.
	Accounts []Account
	// Insecure accepts plain HTTP and certificates that nobody vouches for, from
	// every registry; registries.conf can say that of single ones. It is for those
	// who call commands by hand, never for a job.
	Insecure bool
}

// An Account is a user name and a password for one registry.
type Account struct {
	// Registry is a host with its port, if it has one.
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

// environment is what containers/image needs to know of this user, whatever the
// registry. skopeo and podman read these variables in their commands; the library
// does not.
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

// String says whom a registry was told that we are; never the password.
func (a account) String() string {
	switch {
	case a.auth == types.DockerAuthConfig{}:
		return "asked without a password: none was found for this registry"
	case a.auth.IdentityToken != "":
		return fmt.Sprintf("asked with the identity token of %s", a.from())
	}
	return fmt.Sprintf("asked as %s, with the password of %s", a.auth.Username, a.from())
}

// accountFor is the account for place, which is named itself or a mirror of it.
// What a job brings is for the registry that it names, and no other host.
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

// storedAccount is what the files and credential helpers of this user have for an
// image.
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

// storedIn finds out which file has an account: the library does not say.
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

// defaultAuthFiles are those that containers-auth.json(5) lists, in order.
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
	// The error of encoding/json may quote the text, which holds passwords.
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

// authConfig is what is read of a Docker config.json.
type authConfig struct {
	Auths map[string]authEntry `json:"auths"`
}

type authEntry struct {
	Auth          string `json:"auth"`
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
}

// login is what the field auth holds.
func (e authEntry) login() (username, password string, ok bool) {
	plain, err := base64.StdEncoding.DecodeString(e.Auth)
	username, password, found := strings.Cut(string(plain), ":")
	return username, strings.TrimRight(password, "\x00"), found && err == nil
}

// SecretsIn are the passwords and tokens in the text of a Docker config.json, which
// [Credentials] take as AuthConfig; none if it is none.
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

// registryKey drops from a key of "auths" what Docker writes around the host:
// "https://index.docker.io/v1/" is docker.io.
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
