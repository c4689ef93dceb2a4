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
	"sync"
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
//
// "exec gitlab-sardine-executor" is a process. "run" runs the same command line in this
// process, which is much cheaper; it has no standard input.
func TestScript(t *testing.T) {
	// Absolute, because run changes the working directory.
	dir, err := filepath.Abs(filepath.Join("testdata", "script"))
	if err != nil {
		t.Fatal(err)
	}
	fixtures, err := filepath.Abs(filepath.Join("..", "..", "oci", "testdata", "sardinecake"))
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               func(env *testscript.Env) error { return setUpScript(env, fixtures) },
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"run": runInScript},
	})
}

// process guards the environment, the working directory and the standard input of this
// process.
var process sync.Mutex

// runInScript runs a command line with the environment that the script began with, as the
// script has changed it, and in its directory.
func runInScript(ts *testscript.TestScript, neg bool, args []string) {
	stdout, stderr := ts.Stdout(), ts.Stderr()
	process.Lock()
	defer process.Unlock()
	environment, stdin := os.Environ(), os.Stdin
	dir, err := os.Getwd()
	ts.Check(err)
	null, err := os.Open(os.DevNull)
	ts.Check(err)
	defer func() {
		null.Close()
		os.Stdin = stdin
		setEnvironment(environment)
		if err := os.Chdir(dir); err != nil {
			panic(err)
		}
	}()
	os.Stdin = null
	var own []string
	for _, name := range ts.Value(variables{}).([]string) {
		own = append(own, name+"="+ts.Getenv(name))
	}
	setEnvironment(own)
	ts.Check(os.Chdir(ts.MkAbs(".")))
	if status := run(append([]string{"gitlab-sardine-executor"}, args...), stdout, stderr); (status == 0) == neg {
		ts.Fatalf("exit status %d", status)
	}
}

// setEnvironment never lacks PATH, which scripts that begin meanwhile read.
func setEnvironment(variables []string) {
	wanted := map[string]bool{}
	for _, v := range variables {
		name, value, _ := strings.Cut(v, "=")
		os.Setenv(name, value)
		wanted[name] = true
	}
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); !wanted[name] {
			os.Unsetenv(name)
		}
	}
}

// variables is the key of the names of a script's variables in its values.
type variables struct{}

func setUpScript(env *testscript.Env, fixtures string) error {
	open, private := serve(env, false), serve(env, true)
	env.Vars = append(env.Vars,
		"REGISTRY="+open, "PRIVATE="+private, "FIXTURES="+fixtures,
		"HOME="+filepath.Join(env.WorkDir, "home"), "XDG_RUNTIME_DIR="+filepath.Join(env.WorkDir, "run"),
		"CONTAINERS_REGISTRIES_CONF="+filepath.Join(env.WorkDir, "registries.conf"),
		"GITLAB_SARDINE_EXECUTOR_CONFIG="+filepath.Join(env.WorkDir, "config.toml"),
		// A script without connect must not start a libvirtd of the user's.
		"LIBVIRT_AUTOSTART=0",
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
	var names []string
	for _, v := range env.Vars {
		name, _, _ := strings.Cut(v, "=")
		names = append(names, name)
	}
	env.Values[variables{}] = names
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
