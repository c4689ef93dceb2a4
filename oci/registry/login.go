package registry

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containers/image/v5/docker/reference"
	"github.com/containers/image/v5/pkg/docker/config"
	"github.com/containers/image/v5/types"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/registry/distribution"
)

// errNotLoggedIn: there is no password to remove.
var errNotLoggedIn = errors.New("not logged in")

// Login checks a password against a registry and stores it where skopeo, podman
// and buildah keep theirs: in o.AuthFile, REGISTRY_AUTH_FILE,
// $XDG_RUNTIME_DIR/containers/auth.json or /run/containers/UID/auth.json, or in the
// credential helper that registries.conf or this file configures. It returns a description
// of that place, for people.
//
// registry is HOST[:PORT]. With a path (registry.example.com/group), the password is stored
// for images below that path. If the registry does not accept the password, the error is
// [oci.ErrDenied], and nothing is stored.
func Login(ctx context.Context, registry, username, password string, o Credentials) (stored string, err error) {
	key, host, err := loginKey(registry)
	if err != nil {
		return "", err
	}
	if username == "" || strings.Contains(username, ":") {
		return "", fmt.Errorf("%w: logging in to %s: user name %q: want one without a colon", oci.ErrDenied, key, username)
	}
	if password == "" {
		return "", fmt.Errorf("%w: logging in to %s as %s: the password is empty", oci.ErrDenied, key, username)
	}
	sys := o.environment()
	if err := checkPassword(ctx, sys, host, username, password); err != nil {
		return "", fmt.Errorf("logging in to %s as %s: %w", key, username, err)
	}
	stored, err = config.SetCredentials(sys, key, username, password)
	if err != nil {
		return "", fmt.Errorf("storing the password for %s: %w", key, err)
	}
	return stored, nil
}

func checkPassword(ctx context.Context, sys *types.SystemContext, host, username, password string) error {
	rule, err := findRule(sys, host)
	if err != nil {
		return err
	}
	e := endpoint{account: account{auth: types.DockerAuthConfig{Username: username, Password: password}, from: func() string { return "this login" }}}
	e.client, err = distribution.New(distribution.Options{System: sys, Registry: host, Auth: e.account.auth, Insecure: rule != nil && rule.Insecure})
	if err != nil {
		return err
	}
	if err := e.client.CheckAuth(ctx); err != nil {
		err = e.explain(err)
		return errors.Join(err, e.Close())
	}
	return e.Close()
}

// Logout removes the password for registry, an argument as of [Login]. It is an error if
// there is none where Login would store it. Passwords in other files, such as
// ~/.docker/config.json, stay.
func Logout(registry string, o Credentials) error {
	key, _, err := loginKey(registry)
	if err != nil {
		return err
	}
	err = config.RemoveAuthentication(o.environment(), key)
	if errors.Is(err, config.ErrNotLoggedIn) {
		return fmt.Errorf("%w to %s", errNotLoggedIn, key)
	} else if err != nil {
		return fmt.Errorf("logging out of %s: %w", key, err)
	}
	return nil
}

// LogoutAll removes all passwords from the place where [Login] stores them.
func LogoutAll(o Credentials) error {
	if err := config.RemoveAllAuthentication(o.environment()); err != nil {
		return fmt.Errorf("logging out of all registries: %w", err)
	}
	return nil
}

// loginKey checks the registry argument and splits off the host.
func loginKey(registry string) (key, host string, err error) {
	key = registryKey(registry)
	named, err := reference.ParseNormalizedNamed(key + "/image")
	if err != nil || !reference.IsNameOnly(named) {
		return "", "", fmt.Errorf("%w: %q is not a registry: want HOST[:PORT], such as registry.example.com", oci.ErrReference, registry)
	}
	// In image names, a host without a dot or a port means a repository on Docker Hub.
	host = registryHost(registry)
	if host != reference.Domain(named) {
		return "", "", fmt.Errorf("%w: %q is not a registry: in the name of an image it would mean %s", oci.ErrReference, registry, named.Name())
	}
	return key, host, nil
}
