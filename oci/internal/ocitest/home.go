package ocitest

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/sirupsen/logrus"
)

// home is the directory of AtHome.
var home string

// AtHome runs the tests of a package in a home of their own, which holds no settings for
// registries.
func AtHome(m *testing.M) int {
	var err error
	if home, err = os.MkdirTemp("", "oci-test-home-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(home)
	runtimeDir := filepath.Join(home, "run")
	if err := os.Mkdir(runtimeDir, 0o700); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for name, value := range map[string]string{
		"HOME": home, "XDG_RUNTIME_DIR": runtimeDir, "XDG_CONFIG_HOME": "", "DOCKER_CONFIG": "",
		"REGISTRY_AUTH_FILE": "", "CONTAINERS_REGISTRIES_CONF": "",
	} {
		os.Setenv(name, value)
		if value == "" {
			os.Unsetenv(name)
		}
	}
	logrus.SetOutput(io.Discard)   // where containers/image logs to
	flag.Set("test.parallel", "4") // half of the time they wait
	return m.Run()
}
