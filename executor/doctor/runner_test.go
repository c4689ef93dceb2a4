package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gitlab-sardine-executor/vm/network/passt"
	"gitlab-sardine-executor/vm/virt"
)

// entry is a runner of GitLab Runner's config.toml that uses the driver at path.
func entry(path, more, custom string) string {
	text := "concurrent = 2\n[[runners]]\nname = 'machines'\nurl = 'https://192.0.2.99'\ntoken = 'glrt-SECRET'\nexecutor = 'custom'\n" + more + "\n[runners.custom]\ngraceful_kill_timeout = 120\n"
	for _, stage := range []string{"config", "prepare", "run", "cleanup"} {
		text += fmt.Sprintf("%s_exec = %q\n%s_args = [%q]\n", stage, path, stage, stage)
	}
	for line := range strings.Lines(custom) {
		key, _, _ := strings.Cut(line, " =")
		var kept []string
		for old := range strings.Lines(text) {
			if !strings.HasPrefix(old, key+" =") {
				kept = append(kept, old)
			}
		}
		text = strings.Join(kept, "") + line
	}
	return text
}

func TestDoctorRunner(t *testing.T) {
	path := filepath.Join(t.TempDir(), program)
	if err := os.WriteFile(path, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(t.TempDir(), program)
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, settings, runner, want string }{
		{"all right", "", entry(path, "", ""), "ok: "},
		{"a stage is missing", "", entry(path, "", "cleanup_exec = ''\n"), "error: cleanup_exec is missing: set cleanup_exec = "},
		{"another stage's arguments", "", entry(path, "", "run_args = ['prepare']\n"), `error: run_args is ["prepare"], and lacks "run"`},
		{"no such program", "", entry("/nowhere/"+program, "", ""), "error: config_exec: stat /nowhere"},
		{"not executable", "", entry(plain, "", ""), "error: config_exec: " + plain + " is not executable"},
		{"graceful_kill_timeout", "", entry(path, "", "graceful_kill_timeout = 600\n"), "warning: graceful_kill_timeout is 600 seconds"},
		{"graceful_kill_timeout by default", "", entry(path, "", "graceful_kill_timeout = 0\n"), "warning: graceful_kill_timeout is 600 seconds"},
		{"builds_dir", "", entry(path, "builds_dir = '/builds'", ""), "warning: remove builds_dir and cache_dir"},
		{"prepare_exec_timeout", "", entry(path, "", "prepare_exec_timeout = 600\n"), "warning: prepare_exec_timeout is 10m0s, and a job may wait queue_timeout (30m0s)"},
		{"its default beside a long queue", "[defaults]\nqueue_timeout = '2h'", entry(path, "", ""), "set prepare_exec_timeout to more than 7500 seconds"},
		{"prepare_timeout", "", entry(path, "prepare_timeout = '15m'", ""), "warning: prepare_timeout is 15m0s"},
		{"a slow image", "[[image]]\nmatch = 'slow/*'\ntimeout = '50m'", entry(path, "", ""), "its machine of slow/* timeout (50m0s)"},
		{"other settings", "[defaults]", entry(path, "", "config_args = ['--config', '/etc/other.toml', 'config']\n"), "config reads /etc/other.toml"},
		{"no URL", "", strings.Replace(entry(path, "", ""), "https://192.0.2.99", "", 1), "error: url is not the URL"},
		{"GitLab on the loopback address", "", strings.Replace(entry(path, "", ""), "192.0.2.99", "127.0.0.1", 1), "127.0.0.1 is the loopback address"},
		{"more jobs than slots", "[defaults]\nslots = 1", entry(path, "", ""), "concurrent lets 2 jobs run, and slots = 1"},
		{"a limit", "[defaults]\nslots = 1", entry(path, "limit = 1", ""), "ok: "},
		{"more jobs than memory", "[defaults]\nmemory = '3GiB'", entry(path, "", ""), "the memory of this host holds 1 machines of 3GiB"},
		{"not TOML", "", "concurrent = [\ntoken = 'glrt-SECRET'", "is not what GitLab Runner expects"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := findings(t, "GitLab Runner", c.settings, func(d *doctor) {
				d.runnerFile(t.Context(), "/etc/gitlab-runner/config.toml", []byte(c.runner), virt.HostSize{CPUs: 2, Memory: 5 << 30})
			})
			plain := strings.ReplaceAll(got, `/etc/gitlab-runner/config.toml, runner "machines": `, "")
			if !strings.Contains(plain, c.want) || strings.Contains(got, "SECRET") || c.want == "ok: " && strings.Count(got, "\n") != 1 {
				t.Errorf("got\n%swant %s", got, c.want)
			}
		})
	}
	for name, text := range map[string]string{
		"another driver":   entry("/usr/bin/other", "", ""),
		"another executor": strings.Replace(entry(path, "", ""), "'custom'", "'docker'", 1),
		"nothing":          "",
	} {
		got := findings(t, "GitLab Runner", "", func(d *doctor) {
			if d.runnerFile(t.Context(), "config.toml", []byte(text), virt.HostSize{}) {
				t.Errorf("%s uses this driver", name)
			}
		})
		if got != "" {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// A GitLab on the runner's own host is found by its address.
func TestDoctorOwnGitLab(t *testing.T) {
	path := filepath.Join(t.TempDir(), program)
	if err := os.WriteFile(path, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	own := passt.HostAddresses()
	if len(own) == 0 {
		t.Skip("this machine has no route, and so no address of its own")
	}
	text := strings.Replace(entry(path, "", ""), "192.0.2.99", own[0], 1)
	for settings, want := range map[string]bool{
		"[defaults]\nnetwork = 'user'":                     true,
		"[defaults]\nnetwork = 'user'\nhost_access = true": false,
		"[defaults]\nnetwork = 'default'":                  false,
		"[defaults]\nnetwork = 'user'\nhost_access = true\n[[image]]\nmatch = 'a'\nhost_access = false": true,
	} {
		got := findings(t, "GitLab Runner", settings, func(d *doctor) {
			d.runnerFile(t.Context(), "config.toml", []byte(text), virt.HostSize{})
		})
		if strings.Contains(got, "set host_access = true") != want {
			t.Errorf("%s\n%s", settings, got)
		}
	}
}

func TestRunnerUsers(t *testing.T) {
	proc := t.TempDir()
	for pid, cmdline := range map[string]string{
		"1":   "/sbin/init",
		"20":  "/usr/bin/gitlab-runner\x00run\x00--config\x00/etc/gitlab-runner/config.toml\x00",
		"21":  "gitlab-runner\x00register\x00",
		"22":  "grep\x00gitlab-runner\x00run\x00",
		"300": "",
	} {
		if err := os.MkdirAll(filepath.Join(proc, pid), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(proc, pid, "cmdline"), []byte(cmdline), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if users := runnerUsers(proc); len(users) != 1 || users[0] != os.Geteuid() {
		t.Errorf("got %v", users)
	}
}
