package config

import (
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
