package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"gitlab-sardine-executor": main})
}

const (
	scriptUser     = "vagrant"
	scriptPassword = "correct horse"
)

// TestScript runs the scripts in testdata/script. Each has its own home, its own
// storage, and two registries in this process: $REGISTRY is open, $PRIVATE wants the
// password in the file password. $FIXTURES has images of the Python tool.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setUpScript,
	})
}

func setUpScript(env *testscript.Env) error {
	fixtures, err := filepath.Abs(filepath.Join("..", "..", "oci", "testdata", "sardinecake"))
	if err != nil {
		return err
	}
	open, private := serve(env, false), serve(env, true)
	env.Vars = append(env.Vars,
		"REGISTRY="+open, "PRIVATE="+private, "FIXTURES="+fixtures,
		"HOME="+filepath.Join(env.WorkDir, "home"), "XDG_RUNTIME_DIR="+filepath.Join(env.WorkDir, "run"),
		"CONTAINERS_REGISTRIES_CONF="+filepath.Join(env.WorkDir, "registries.conf"),
		"GITLAB_SARDINE_EXECUTOR_CONFIG="+filepath.Join(env.WorkDir, "config.toml"),
	)
	insecure := ""
	for _, host := range []string{open, private} {
		insecure += fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", host)
	}
	for name, text := range map[string]string{
		"registries.conf": insecure,
		"config.toml":     fmt.Sprintf("[defaults]\nconnect = \"test:///default\"\nstorage = %q\n", filepath.Join(env.WorkDir, "storage")),
		"password":        scriptPassword + "\n",
	} {
		if err := os.WriteFile(filepath.Join(env.WorkDir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	for _, dir := range []string{"home", "run"} {
		if err := os.Mkdir(filepath.Join(env.WorkDir, dir), 0o700); err != nil {
			return err
		}
	}
	return expandFiles(env)
}

// expandFiles replaces ${WORK} in the script's files by its directory.
func expandFiles(env *testscript.Env) error {
	for _, pattern := range []string{"*.toml", "*.xml"} {
		paths, err := filepath.Glob(filepath.Join(env.WorkDir, pattern))
		if err != nil {
			return err
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if err := os.WriteFile(path, bytes.ReplaceAll(text, []byte("${WORK}"), []byte(env.WorkDir)), 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}

// serve starts a registry that stops with the script.
func serve(env *testscript.Env, private bool) (host string) {
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if private && (user != scriptUser || password != scriptPassword) {
			w.Header().Set("WWW-Authenticate", `Basic realm="script"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	env.Defer(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}
