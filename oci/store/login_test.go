package store

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/internal/ocitest"
	"gitlab-sardine-executor/oci/registry"
	"gitlab-sardine-executor/oci/transfer"
)

// TestLoginTLS logs in at Debian's docker-registry, whose certificate is known
// from certs.d, and lets skopeo use the password; and the other way round.
func TestLoginTLS(t *testing.T) {
	t.Parallel()
	server := ocitest.StartDockerRegistry(t)
	creds := registry.Credentials{AuthFile: filepath.Join(t.TempDir(), "auth.json")}
	login := func(password string, c registry.Credentials) error {
		_, err := registry.Login(t.Context(), server.Host, ocitest.RegistryUser, password, c)
		return err
	}

	if err := login(ocitest.RegistryPassword, creds); err == nil || oci.IsPermanent(err) {
		t.Errorf("with a certificate that nobody vouches for: %v", err)
	}
	insecure := creds
	insecure.Insecure = true
	if err := login(ocitest.RegistryPassword, insecure); err != nil {
		t.Errorf("accepting any certificate: %v", err)
	}
	if err := registry.Logout(server.Host, creds); err != nil {
		t.Error(err)
	}

	server.Trust(t)
	if err := login("wrong", creds); !errors.Is(err, oci.ErrDenied) {
		t.Errorf("wrong password: %v", err)
	}
	if text, err := os.ReadFile(creds.AuthFile); err != nil || bytes.Contains(text, []byte(server.Host)) {
		t.Errorf("a wrong password was stored: %s, %v", text, err)
	}
	if err := login(ocitest.RegistryPassword, creds); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(creds.AuthFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("auth file: %v, %v; want mode 0600", info.Mode(), err)
	}

	// skopeo has our password.
	got := ocitest.Command(t, ".", "skopeo", "login", "--authfile", creds.AuthFile, "--get-login", server.Host)
	if strings.TrimSpace(got) != ocitest.RegistryUser {
		t.Errorf("skopeo says that we are %q", got)
	}
	layout := filepath.Join("..", "testdata", "sardinecake", "single", "oci")
	ocitest.Command(t, ".", "skopeo", "--insecure-policy", "copy", "-q", "--authfile", creds.AuthFile,
		"oci:"+layout+":latest", "docker://"+server.Host+"/vms/single:1")
	ocitest.Command(t, ".", "skopeo", "logout", "--authfile", creds.AuthFile, server.Host)

	ref := ocitest.MustParse(t, server.Host+"/vms/single:1")
	if _, err := newStore(t).Pull(t.Context(), ref, PullOptions{Credentials: creds}); !errors.Is(err, oci.ErrDenied) {
		t.Errorf("after skopeo logged us out: %v", err)
	}

	// We have skopeo's.
	skopeo := exec.Command("skopeo", "login", "--authfile", creds.AuthFile, "-u", ocitest.RegistryUser, "--password-stdin", server.Host)
	skopeo.Stdin = strings.NewReader(ocitest.RegistryPassword)
	if out, err := skopeo.CombinedOutput(); err != nil {
		t.Fatalf("skopeo login: %v\n%s", err, out)
	}
	if _, err := newStore(t).Pull(t.Context(), ref, PullOptions{Credentials: creds}); err != nil {
		t.Error(err)
	}
	if err := registry.Logout(server.Host, creds); err != nil {
		t.Error(err)
	}
	if out, err := exec.Command("skopeo", "login", "--authfile", creds.AuthFile, "--get-login", server.Host).CombinedOutput(); err == nil {
		t.Errorf("skopeo is still logged in: %s", out)
	}
	if err := registry.Logout(server.Host, creds); err == nil || !strings.Contains(err.Error(), "not logged in to "+server.Host) {
		t.Errorf("logging out again: %v", err)
	}
}

// TestLoginPlace: the auth file is found as skopeo finds it.
func TestLoginPlace(t *testing.T) {
	server := ocitest.StartDockerRegistry(t)
	server.Trust(t)
	runtimeDir := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", runtimeDir)
	named := filepath.Join(t.TempDir(), "named.json")

	for name, test := range map[string]struct{ env, want string }{
		"XDG_RUNTIME_DIR":    {"", filepath.Join(runtimeDir, "containers", "auth.json")},
		"REGISTRY_AUTH_FILE": {named, named},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("REGISTRY_AUTH_FILE", test.env)
			stored, err := registry.Login(t.Context(), server.Host, ocitest.RegistryUser, ocitest.RegistryPassword, registry.Credentials{})
			if err != nil || stored != test.want {
				t.Fatalf("stored in %q, %v; want %s", stored, err, test.want)
			}
			got := ocitest.Command(t, ".", "skopeo", "login", "--get-login", server.Host)
			if strings.TrimSpace(got) != ocitest.RegistryUser {
				t.Errorf("skopeo says that we are %q", got)
			}
			if err := registry.LogoutAll(registry.Credentials{}); err != nil {
				t.Error(err)
			}
			if out, err := exec.Command("skopeo", "login", "--get-login", server.Host).CombinedOutput(); err == nil {
				t.Errorf("skopeo is still logged in: %s", out)
			}
		})
	}
}

// TestCredentialHelper stores the password with a program, as Docker does.
func TestCredentialHelper(t *testing.T) {
	server := ocitest.StartDockerRegistry(t)
	server.Trust(t)
	dir := t.TempDir()
	helper := fmt.Sprintf("#!/bin/sh\ncase $1 in\nstore|erase) cat >%[1]s/$1;;\nget) cat %[1]s/store;;\nesac\n", dir)
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-test"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	creds := registry.Credentials{AuthFile: filepath.Join(dir, "auth.json")}
	config := fmt.Sprintf(`{"credHelpers": {%q: "test"}}`, server.Host)
	if err := os.WriteFile(creds.AuthFile, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := registry.Login(t.Context(), server.Host, ocitest.RegistryUser, ocitest.RegistryPassword, creds); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"store": true, "auth.json": false} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || bytes.Contains(text, []byte(ocitest.RegistryPassword)) != want {
			t.Errorf("%s: %s, %v", name, text, err)
		}
	}
	ref := ocitest.MustParse(t, server.Host+"/vms/single:1")
	if _, err := transfer.Push(t.Context(), ocitest.FixtureRef(t, "single", "latest"), ref, transfer.Options{Credentials: creds}); err != nil {
		t.Error(err)
	}
	if err := registry.Logout(server.Host, creds); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "erase")); err != nil {
		t.Error(err)
	}
}

// TestCredentialsHidden: no way of printing shows a password, and no error does.
func TestCredentialsHidden(t *testing.T) {
	t.Parallel()
	const secret = "s3cret"
	creds := registry.Credentials{AuthConfig: ocitest.AuthFile("r.example", secret), Accounts: []registry.Account{{Registry: "r.example", Username: "u", Password: secret}}}
	var log bytes.Buffer
	for _, handler := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
		slog.New(handler).Info("pull", "creds", creds, "account", creds.Accounts[0], "accounts", creds.Accounts)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		fmt.Fprintf(&log, verb+verb+verb, creds, creds.Accounts, PullOptions{Credentials: creds})
	}
	for _, v := range []any{creds, creds.Accounts, PullOptions{Credentials: creds}} {
		text, err := json.Marshal(v)
		if err != nil {
			continue // it cannot be printed that way at all
		}
		log.Write(text)
	}
	for _, text := range []string{secret, `{"auths":{"r.example":{"auth":"` + secret + `"}}}`} {
		creds := registry.Credentials{AuthConfig: text}
		_, err := newStore(t).Pull(t.Context(), ocitest.MustParse(t, "r.example/x:1"), PullOptions{Credentials: creds})
		if !errors.Is(err, oci.ErrDenied) {
			t.Errorf("got %v, want ErrDenied", err)
		}
		fmt.Fprint(&log, err)
	}
	if strings.Contains(log.String(), secret) || strings.Contains(log.String(), base64.StdEncoding.EncodeToString([]byte("u:"+secret))) {
		t.Errorf("shows the password:\n%s", log.String())
	}
}

// TestCredentialsNotWritten pulls with a job's password and looks for it in every file
// that is written, the registry's own included but for its htpasswd, and in all
// that is logged, however much the administrator wants to know.
func TestCredentialsNotWritten(t *testing.T) {
	server := ocitest.StartDockerRegistry(t)
	server.Trust(t)
	var log syncBuffer
	registry.LogTo(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	t.Cleanup(func() { registry.LogTo(slog.New(slog.DiscardHandler)) })
	temporary := t.TempDir()
	t.Setenv("TMPDIR", temporary)
	account := registry.Credentials{Accounts: []registry.Account{{Registry: server.Host, Username: ocitest.RegistryUser, Password: ocitest.RegistryPassword}}}
	encoded := base64.StdEncoding.EncodeToString([]byte(ocitest.RegistryUser + ":" + ocitest.RegistryPassword))
	variable := registry.Credentials{AuthConfig: fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, server.Host, encoded)}

	ref := ocitest.MustParse(t, server.Host+"/vms/novmconfig:1")
	if _, err := transfer.Push(t.Context(), ocitest.FixtureRef(t, "novmconfig", "latest"), ref, transfer.Options{Credentials: account}); err != nil {
		t.Fatal(err)
	}
	var roots []string
	for _, creds := range []registry.Credentials{account, variable} {
		store := newStore(t)
		layout := filepath.Join(t.TempDir(), "layout")
		if _, err := store.Pull(t.Context(), ref, PullOptions{Credentials: creds}); err != nil {
			t.Fatal(err)
		}
		if _, err := transfer.Fetch(t.Context(), ref, ocitest.MustParse(t, "oci:"+layout), transfer.Options{Credentials: creds}); err != nil {
			t.Fatal(err)
		}
		// One that fails says why at length.
		missing := ocitest.MustParse(t, server.Host+"/vms/missing:1")
		if _, err := store.Pull(t.Context(), missing, PullOptions{Credentials: creds}); !errors.Is(err, oci.ErrNotFound) {
			t.Errorf("got %v, want ErrNotFound", err)
		} else {
			fmt.Fprintln(&log, err)
		}
		roots = append(roots, store.Root(), layout)
	}
	if _, err := registry.Login(t.Context(), server.Host, ocitest.RegistryUser, ocitest.RegistryPassword+"x", registry.Credentials{AuthFile: filepath.Join(temporary, "auth.json")}); !errors.Is(err, oci.ErrDenied) {
		t.Errorf("got %v, want ErrDenied", err)
	} else {
		fmt.Fprintln(&log, err)
	}
	secrets := [][]byte{[]byte(ocitest.RegistryPassword), []byte(url.QueryEscape(ocitest.RegistryPassword)), []byte(url.PathEscape(ocitest.RegistryPassword)), []byte(encoded)}
	shows := func(text []byte) bool {
		return slices.ContainsFunc(secrets, func(secret []byte) bool { return bytes.Contains(text, secret) })
	}
	text := log.Bytes()
	if !bytes.Contains(text, []byte("level=DEBUG")) || !bytes.Contains(text, []byte(server.Host)) {
		t.Errorf("the log does not tell of the pulls:\n%s", text)
	}
	if shows(text) {
		t.Errorf("the log shows the password:\n%s", text)
	}
	files := 0
	for _, root := range append(roots, os.Getenv("HOME"), temporary, filepath.Dir(server.Ca)) {
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return err
			}
			files++
			text, err := os.ReadFile(path)
			if shows(text) || shows([]byte(path)) {
				t.Errorf("%s holds the password", path)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	if files < 20 {
		t.Errorf("only %d files were looked into", files)
	}
}

// A syncBuffer is written to by several goroutines.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// Bytes is what was written so far.
func (b *syncBuffer) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.buf.Bytes())
}
