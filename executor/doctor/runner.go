package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/pelletier/go-toml/v2"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/internal/defaultmachine"
	"gitlab-sardine-executor/vm/network/passt"
	"gitlab-sardine-executor/vm/virt"
)

// defaultMemory is the memory, in bytes, of a machine that neither image nor settings give any.
const defaultMemory = defaultmachine.Memory

const program = "gitlab-sardine-executor"

// Defaults of GitLab Runner, in seconds (executors/custom of its documentation).
const (
	defaultPrepareTimeout = 3600
	defaultGraceful       = 600
	// gracefulMax is how long GitLab Runner waits for a stage before it starts cleanup.
	gracefulMax = 300
)

// runnerConfig is what doctor reads of the config.toml of GitLab Runner.
type runnerConfig struct {
	Concurrent uint          `toml:"concurrent"`
	Runners    []runnerEntry `toml:"runners"`
}

type runnerEntry struct {
	Name           string `toml:"name"`
	URL            string `toml:"url"`
	Limit          uint   `toml:"limit"`
	Executor       string `toml:"executor"`
	BuildsDir      string `toml:"builds_dir"`
	CacheDir       string `toml:"cache_dir"`
	PrepareTimeout any    `toml:"prepare_timeout"` // GitLab Runner 19
	Custom         struct {
		ConfigExec         string   `toml:"config_exec"`
		ConfigArgs         []string `toml:"config_args"`
		PrepareExec        string   `toml:"prepare_exec"`
		PrepareArgs        []string `toml:"prepare_args"`
		PrepareExecTimeout *uint    `toml:"prepare_exec_timeout"`
		RunExec            string   `toml:"run_exec"`
		RunArgs            []string `toml:"run_args"`
		CleanupExec        string   `toml:"cleanup_exec"`
		CleanupArgs        []string `toml:"cleanup_args"`
		GracefulKill       *uint    `toml:"graceful_kill_timeout"`
	} `toml:"custom"`
}

// runner looks for the settings of GitLab Runner where it looks for them itself, and checks the
// runners that use this driver. It never shows their tokens.
func (d *doctor) runner(ctx context.Context, host virt.HostSize) {
	paths := []string{"/etc/gitlab-runner/config.toml"}
	if home, err := os.UserHomeDir(); err == nil {
		paths = append(paths, filepath.Join(home, ".gitlab-runner", "config.toml"))
	}
	if os.Geteuid() != 0 {
		slices.Reverse(paths) // as the runner of an ordinary user does
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			d.add("GitLab Runner", Warning, "%v", err)
			continue
		}
		if d.runnerFile(ctx, path, text, host) {
			return
		}
	}
	d.advise("GitLab Runner", Warning, "gitlab-runner register --executor custom",
		"no settings of a runner with this driver in %s (docs/gitlab-runner.md shows them)", strings.Join(paths, " or "))
}

// runnerFile reports whether a runner in the file uses this driver.
func (d *doctor) runnerFile(ctx context.Context, path string, text []byte, host virt.HostSize) bool {
	var c runnerConfig
	if err := toml.Unmarshal(text, &c); err != nil {
		var place *toml.DecodeError
		line := 0
		if errors.As(err, &place) { // its own text shows the lines around it, and so a token
			line, _ = place.Position()
		}
		d.add("GitLab Runner", Warning, "%s: line %d is not what GitLab Runner expects", path, line)
		return false
	}
	used := false
	for _, r := range c.Runners {
		if r.Executor == "custom" && r.uses(program) {
			used = true
			d.runnerEntry(ctx, fmt.Sprintf("%s, runner %q", path, r.Name), r)
		}
	}
	if used {
		d.concurrency(path, c, host)
	}
	return used
}

// stage is the program and the arguments of one stage.
type stage struct {
	name, exec string
	args       []string
}

func (r runnerEntry) stages() []stage {
	c := r.Custom
	return []stage{
		{"config", c.ConfigExec, c.ConfigArgs}, {"prepare", c.PrepareExec, c.PrepareArgs},
		{"run", c.RunExec, c.RunArgs}, {"cleanup", c.CleanupExec, c.CleanupArgs},
	}
}

func (r runnerEntry) uses(program string) bool {
	return slices.ContainsFunc(r.stages(), func(s stage) bool { return filepath.Base(s.exec) == program })
}

// runnerEntry checks one runner; where names it.
func (d *doctor) runnerEntry(ctx context.Context, where string, r runnerEntry) {
	before := len(d.findings)
	for _, s := range r.stages() {
		d.stage(where, s)
	}
	if graceful := value(r.Custom.GracefulKill, defaultGraceful); graceful >= gracefulMax {
		d.add("GitLab Runner", Warning, "%s: graceful_kill_timeout is %d seconds: cleanup can start while a script is still running; set it to less than %d, such as 120", where, graceful, gracefulMax)
	}
	if r.BuildsDir != "" || r.CacheDir != "" {
		d.add("GitLab Runner", Warning, "%s: remove builds_dir and cache_dir: the driver reports guest_builds_dir and guest_cache_dir", where)
	}
	d.prepareTime(where, r)
	d.server(ctx, where, r)
	if len(d.findings) == before {
		d.add("GitLab Runner", OK, "%s: four stages, and times that fit", where)
	}
}

// stage checks the program and the arguments of a stage.
func (d *doctor) stage(where string, s stage) {
	switch {
	case s.exec == "":
		path, _ := os.Executable()
		d.add("GitLab Runner", Error, "%s: %s_exec is missing: set %s_exec = %q and %s_args = [%q]", where, s.name, s.name, path, s.name, s.name)
		return
	case !slices.Contains(s.args, s.name):
		d.add("GitLab Runner", Error, "%s: %s_args is %q, and lacks %q", where, s.name, s.args, s.name)
	}
	info, err := os.Stat(s.exec)
	switch {
	case err != nil:
		d.add("GitLab Runner", Error, "%s: %s_exec: %v", where, s.name, err)
	case info.Mode()&0o111 == 0:
		d.advise("GitLab Runner", Error, "chmod +x "+quote(s.exec), "%s: %s_exec: %s is not executable", where, s.name, s.exec)
	}
	i := slices.Index(s.args, "--config")
	if i >= 0 && i+1 < len(s.args) && d.settings.Path != "" && s.args[i+1] != d.settings.Path {
		d.advise("GitLab Runner", Warning, program+" --config "+quote(s.args[i+1])+" doctor",
			"%s: %s reads %s, and this report is about %s", where, s.name, s.args[i+1], d.settings.Path)
	}
}

// prepareTime compares how long prepare may take for the runner and for the driver.
func (d *doctor) prepareTime(where string, r runnerEntry) {
	has, name := time.Duration(value(r.Custom.PrepareExecTimeout, defaultPrepareTimeout))*time.Second, "prepare_exec_timeout"
	if own, ok := duration(r.PrepareTimeout); ok && own < has {
		has, name = own, "prepare_timeout"
	}
	queue := time.Duration(d.settings.Defaults.QueueTimeout)
	for match, s := range d.settings.All() {
		needs := queue + s.Timeout
		if has > needs {
			continue
		}
		of := ""
		if match != "" {
			of = " of " + match
		}
		d.add("GitLab Runner", Warning, "%s: %s is %s, and a job may wait queue_timeout (%s) for room and its machine%s timeout (%s) for its guest, besides the pull: set %s to more than %d seconds",
			where, name, has, queue, of, s.Timeout, name, int(needs.Seconds()))
		return
	}
}

// server checks whether guests reach the GitLab server of the runner.
func (d *doctor) server(ctx context.Context, where string, r runnerEntry) {
	u, err := url.Parse(r.URL)
	if err != nil || u.Hostname() == "" {
		d.add("GitLab Runner", Error, "%s: url is not the URL of a GitLab server", where)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupHost(ctx, u.Hostname())
	if err != nil {
		d.add("GitLab Runner", Warning, "%s: %v", where, err)
		return
	}
	own := passt.HostAddresses()
	for _, address := range addresses {
		switch ip := net.ParseIP(address); {
		case ip != nil && ip.IsLoopback():
			d.add("GitLab Runner", Warning, "%s: %s is the loopback address %s: no guest reaches GitLab there; give it a name for an address of this host", where, u.Hostname(), address)
			return
		case slices.Contains(own, address) && !d.reachesHost():
			d.add("GitLab Runner", Warning, "%s: %s is this host (%s), which guests with network = %q do not reach: set host_access = true", where, u.Hostname(), address, config.UserNetwork)
			return
		}
	}
}

// reachesHost reports whether guests of all images reach this host at its main address.
func (d *doctor) reachesHost() bool {
	for _, s := range d.settings.All() {
		if s.Network == config.UserNetwork && !s.HostAccess {
			return false
		}
	}
	return true
}

// concurrency compares how many jobs the runner starts with how many machines have room.
func (d *doctor) concurrency(path string, c runnerConfig, host virt.HostSize) {
	jobs := cmp.Or(c.Concurrent, 1)
	var limits uint
	for _, r := range c.Runners {
		if r.Limit == 0 {
			limits = jobs
			break
		}
		limits += r.Limit
	}
	jobs = min(jobs, limits)
	if slots := d.settings.Defaults.Slots; slots > 0 && jobs > slots {
		d.add("GitLab Runner", Warning, "%s: concurrent lets %d jobs run, and slots = %d: the others wait for queue_timeout at most", path, jobs, slots)
	}
	memory := cmp.Or(d.settings.For("").Memory, defaultMemory)
	room := int64(host.Memory) - int64(d.settings.Defaults.HostReserve)
	if fits := max(room, 0) / int64(memory); host.Memory > 0 && int64(jobs) > fits {
		d.add("GitLab Runner", Warning, "%s: concurrent lets %d jobs run, and the memory of this host holds %d machines of %s beside host_reserve: the others wait for queue_timeout at most",
			path, jobs, fits, units.BytesSize(float64(memory)))
	}
}

func value(p *uint, otherwise uint) uint {
	if p == nil || *p == 0 {
		return otherwise
	}
	return *p
}

// duration reads a time of GitLab Runner's settings: seconds, or Go's notation.
func duration(v any) (time.Duration, bool) {
	switch v := v.(type) {
	case int64:
		return time.Duration(v) * time.Second, v > 0
	case string:
		if n, err := strconv.ParseInt(v, 10, 64); err == nil {
			return time.Duration(n) * time.Second, n > 0
		}
		d, err := time.ParseDuration(v)
		return d, err == nil && d > 0
	}
	return 0, false
}
