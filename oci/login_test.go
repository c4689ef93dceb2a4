package oci

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
)

// TestLoginTLS logs in at Debian's docker-registry, whose certificate is known
// from certs.d, and lets skopeo use the password; and the other way round.
func TestLoginTLS(t *testing.T) {
	registry := startDockerRegistry(t)
	creds := Credentials{AuthFile: filepath.Join(t.TempDir(), "auth.json")}
	login := func(password string, c Credentials) error {
		_, err := Login(t.Context(), registry.host, registryUser, password, c)
		return err
	}

	if err := login(registryPassword, creds); err == nil || Final(err) {
		t.Errorf("with a certificate that nobody vouches for: %v", err)
	}
	insecure := creds
	insecure.Insecure = true
	if err := login(registryPassword, insecure); err != nil {
		t.Errorf("accepting any certificate: %v", err)
	}
	if err := Logout(registry.host, creds); err != nil {
		t.Error(err)
	}

	registry.trust(t)
	if err := login("wrong", creds); !errors.Is(err, ErrDenied) {
		t.Errorf("wrong password: %v", err)
	}
	if text, err := os.ReadFile(creds.AuthFile); err != nil || bytes.Contains(text, []byte(registry.host)) {
		t.Errorf("a wrong password was stored: %s, %v", text, err)
	}
	if err := login(registryPassword, creds); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(creds.AuthFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("auth file: %v, %v; want mode 0600", info.Mode(), err)
	}

	// skopeo has our password.
	got := command(t, ".", "skopeo", "login", "--authfile", creds.AuthFile, "--get-login", registry.host)
	if strings.TrimSpace(got) != registryUser {
		t.Errorf("skopeo says that we are %q", got)
	}
	layout := filepath.Join("testdata", "sardinecake", "single", "oci")
	command(t, ".", "skopeo", "--insecure-policy", "copy", "-q", "--authfile", creds.AuthFile,
		"oci:"+layout+":latest", "docker://"+registry.host+"/vms/single:1")
	command(t, ".", "skopeo", "logout", "--authfile", creds.AuthFile, registry.host)

	ref := mustParse(t, registry.host+"/vms/single:1")
	if _, err := newStore(t).Pull(t.Context(), ref, PullOptions{Credentials: creds}); !errors.Is(err, ErrDenied) {
		t.Errorf("after skopeo logged us out: %v", err)
	}

	// We have skopeo's.
	skopeo := exec.Command("skopeo", "login", "--authfile", creds.AuthFile, "-u", registryUser, "--password-stdin", registry.host)
	skopeo.Stdin = strings.NewReader(registryPassword)
	if out, err := skopeo.CombinedOutput(); err != nil {
		t.Fatalf("skopeo login: %v\n%s", err, out)
	}
	if _, err := newStore(t).Pull(t.Context(), ref, PullOptions{Credentials: creds}); err != nil {
		t.Error(err)
	}
	if err := Logout(registry.host, creds); err != nil {
		t.Error(err)
	}
	if out, err := exec.Command("skopeo", "login", "--authfile", creds.AuthFile, "--get-login", registry.host).CombinedOutput(); err == nil {
		t.Errorf("skopeo is still logged in: %s", out)
	}
	if err := Logout(registry.host, creds); !errors.Is(err, ErrNotLoggedIn) {
		t.Errorf("logging out again: %v", err)
	}
}

// TestLoginPlace: the auth file is found as skopeo finds it.
func TestLoginPlace(t *testing.T) {
	registry := startDockerRegistry(t)
	registry.trust(t)
	runtimeDir := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", runtimeDir)
	named := filepath.Join(t.TempDir(), "named.json")

	for name, test := range map[string]struct{ env, want string }{
		"XDG_RUNTIME_DIR":    {"", filepath.Join(runtimeDir, "containers", "auth.json")},
		"REGISTRY_AUTH_FILE": {named, named},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("REGISTRY_AUTH_FILE", test.env)
			stored, err := Login(t.Context(), registry.host, registryUser, registryPassword, Credentials{})
			if err != nil || stored != test.want {
				t.Fatalf("stored in %q, %v; want %s", stored, err, test.want)
			}
			got := command(t, ".", "skopeo", "login", "--get-login", registry.host)
			if strings.TrimSpace(got) != registryUser {
				t.Errorf("skopeo says that we are %q", got)
			}
			if err := LogoutAll(Credentials{}); err != nil {
				t.Error(err)
			}
			if out, err := exec.Command("skopeo", "login", "--get-login", registry.host).CombinedOutput(); err == nil {
				t.Errorf("skopeo is still logged in: %s", out)
			}
		})
	}
}

// TestCredentialHelper stores the password with a program, as Docker does.
func TestCredentialHelper(t *testing.T) {
	registry := startDockerRegistry(t)
	registry.trust(t)
	dir := t.TempDir()
	helper := fmt.Sprintf("#!/bin/sh\ncase $1 in\nstore|erase) cat >%[1]s/$1;;\nget) cat %[1]s/store;;\nesac\n", dir)
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-test"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	creds := Credentials{AuthFile: filepath.Join(dir, "auth.json")}
	config := fmt.Sprintf(`{"credHelpers": {%q: "test"}}`, registry.host)
	if err := os.WriteFile(creds.AuthFile, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Login(t.Context(), registry.host, registryUser, registryPassword, creds); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"store": true, "auth.json": false} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || bytes.Contains(text, []byte(registryPassword)) != want {
			t.Errorf("%s: %s, %v", name, text, err)
		}
	}
	ref := mustParse(t, registry.host+"/vms/single:1")
	if _, err := Push(t.Context(), fixtureRef(t, "single", "latest"), ref, TransferOptions{Credentials: creds}); err != nil {
		t.Error(err)
	}
	if err := Logout(registry.host, creds); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "erase")); err != nil {
		t.Error(err)
	}
}

// TestCredentialsHidden: no way of printing shows a password, and no error does.
func TestCredentialsHidden(t *testing.T) {
	const secret = "s3cret"
	creds := Credentials{AuthConfig: authFile("r.example", secret), Accounts: []Account{{"r.example", "u", secret}}}
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
		creds := Credentials{AuthConfig: text}
		_, err := newStore(t).Pull(t.Context(), mustParse(t, "r.example/x:1"), PullOptions{Credentials: creds})
		if !errors.Is(err, ErrDenied) {
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
	registry := startDockerRegistry(t)
	registry.trust(t)
	var log syncBuffer
	LogTo(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	t.Cleanup(func() { LogTo(slog.New(slog.DiscardHandler)) })
	temporary := t.TempDir()
	t.Setenv("TMPDIR", temporary)
	account := Credentials{Accounts: []Account{{registry.host, registryUser, registryPassword}}}
	encoded := base64.StdEncoding.EncodeToString([]byte(registryUser + ":" + registryPassword))
	variable := Credentials{AuthConfig: fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, registry.host, encoded)}

	ref := mustParse(t, registry.host+"/vms/novmconfig:1")
	if _, err := Push(t.Context(), fixtureRef(t, "novmconfig", "latest"), ref, TransferOptions{Credentials: account}); err != nil {
		t.Fatal(err)
	}
	var roots []string
	for _, creds := range []Credentials{account, variable} {
		store := newStore(t)
		layout := filepath.Join(t.TempDir(), "layout")
		if _, err := store.Pull(t.Context(), ref, PullOptions{Credentials: creds}); err != nil {
			t.Fatal(err)
		}
		if _, err := Fetch(t.Context(), ref, mustParse(t, "oci:"+layout), TransferOptions{Credentials: creds}); err != nil {
			t.Fatal(err)
		}
		// One that fails says why at length.
		missing := mustParse(t, registry.host+"/vms/missing:1")
		if _, err := store.Pull(t.Context(), missing, PullOptions{Credentials: creds}); !errors.Is(err, ErrNotFound) {
			t.Errorf("got %v, want ErrNotFound", err)
		} else {
			fmt.Fprintln(&log, err)
		}
		roots = append(roots, store.Root(), layout)
	}
	if _, err := Login(t.Context(), registry.host, registryUser, registryPassword+"x", Credentials{AuthFile: filepath.Join(temporary, "auth.json")}); !errors.Is(err, ErrDenied) {
		t.Errorf("got %v, want ErrDenied", err)
	} else {
		fmt.Fprintln(&log, err)
	}
	secrets := [][]byte{[]byte(registryPassword), []byte(url.QueryEscape(registryPassword)), []byte(url.PathEscape(registryPassword)), []byte(encoded)}
	shows := func(text []byte) bool {
		return slices.ContainsFunc(secrets, func(secret []byte) bool { return bytes.Contains(text, secret) })
	}
	text := log.Bytes()
	if !bytes.Contains(text, []byte("level=DEBUG")) || !bytes.Contains(text, []byte(registry.host)) {
		t.Errorf("the log does not tell of the pulls:\n%s", text)
	}
	if shows(text) {
		t.Errorf("the log shows the password:\n%s", text)
	}
	files := 0
	for _, root := range append(roots, os.Getenv("HOME"), temporary, filepath.Dir(registry.ca)) {
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
