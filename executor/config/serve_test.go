package config

import (
	"os"
	"strings"
	"testing"
	"time"
)

func TestListen(t *testing.T) {
	for text, want := range map[string]string{
		"":                             " ",
		"unix:/run/x/serve.sock":       "unix /run/x/serve.sock",
		"unix:///run/x/serve.sock":     "unix /run/x/serve.sock",
		"127.0.0.1:9254":               "tcp 127.0.0.1:9254",
		"[::1]:9254":                   "tcp [::1]:9254",
		"localhost:9254":               "tcp localhost:9254",
		"127.0.0.1":                    "",
		"127.0.0.1:":                   "",
		":9254":                        "",
		"0.0.0.0:9254":                 "",
		"192.0.2.1:9254":               "",
		"localhost.example.com:9254":   "",
		"unix:serve.sock":              "",
		"unix:":                        "",
		"/run/x/serve.sock":            "",
		"http://127.0.0.1:9254/metric": "",
	} {
		network, address, err := Serve{Listen: text}.Address()
		if got := network + " " + address; (err == nil) != (want != "") || err == nil && got != want {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
		}
	}
}

func TestIdleSettings(t *testing.T) {
	s := parse(t, "[[image]]\nmatch = 'a'\nidle_machines = 2\n[[image]]\nmatch = 'b'\nidle_time = '5m'")
	if s.Images[0].IdleMachines != 2 || s.Images[0].IdleLimit() != time.Hour || s.Images[1].IdleLimit() != 5*time.Minute {
		t.Errorf("%+v", s.Images)
	}
	for text, want := range map[string]string{
		"[[image]]\nmatch = 'x'\nidle_machines = -1":   "line 3: ",
		"[[image]]\nmatch = 'x'\nidle_machines = 2000": "idle_machines is 2000: want at most 1000",
		"[[image]]\nmatch = 'x'\nidle_time = '0s'":     "idle_time must be at least 1s",
		"[defaults]\nidle_machines = 2":                `unknown key "defaults.idle_machines"`,
		"[serve]\nlisten = '0.0.0.0:80'":               `[serve]: listen is "0.0.0.0:80": want`,
		"[serve]\nsweep_interval = '0s'":               "[serve]: sweep_interval must be at least 1s",
		"[serve]\nlisen = ''":                          `line 2: unknown key "serve.lisen" (did you mean "listen"?)`,
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", text, err, want)
		}
	}
}

func TestNestingSettings(t *testing.T) {
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
	s := parse(t, "[serve]\nnesting = true\nnesting_authorized_keys = ['"+key+"', '"+key+" me@here']")
	if !s.Serve.Nesting || s.Serve.NestingTimeout != Duration(12*time.Hour) || len(s.Serve.NestingAuthorizedKeys) != 2 {
		t.Errorf("%+v", s.Serve)
	}
	for text, want := range map[string]string{
		"nesting_socket = 'unix:/run/x'":                                          "want an absolute path",
		"nesting_timeout = '0s'":                                                  "nesting_timeout must be at least 1s",
		"nesting_authorized_keys = ['']":                                          "number 1: want one public key",
		"nesting_authorized_keys = ['" + key + "', 'ssh-ed25519 AAAA']":           "number 2: want one public key",
		"nesting_authorized_keys = ['-----BEGIN OPENSSH PRIVATE KEY-----s3cret']": "number 1: want one public key",
		`nesting_authorized_keys = ["` + key + `\n` + key + `"]`:                  "number 1: want one public key",
	} {
		_, err := Parse([]byte("[serve]\n" + text))
		if err == nil || !strings.Contains(err.Error(), "[serve]: nesting_") || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: %v; want %q", text, err, want)
		}
	}
}

func TestNestingPath(t *testing.T) {
	if path, err := (Serve{NestingSocket: "/a//b/../s"}).NestingPath(); path != "/a/s" || err != nil {
		t.Errorf("%q, %v", path, err)
	}
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/7")
	want := "/run/user/7/gitlab-sardine-executor/nesting.sock"
	if os.Geteuid() == 0 {
		want = "/run/gitlab-sardine-executor/nesting.sock"
	}
	if path, err := (Serve{}).NestingPath(); path != want || err != nil {
		t.Errorf("%q, %v; want %q", path, err, want)
	}
	t.Setenv("XDG_RUNTIME_DIR", "")
	if path, err := (Serve{}).NestingPath(); os.Geteuid() != 0 && (err == nil || !strings.Contains(err.Error(), "nesting_socket")) {
		t.Errorf("%q, %v", path, err)
	}
}
