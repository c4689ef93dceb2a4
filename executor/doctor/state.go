package doctor

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gitlab-sardine-executor/executor/claim"
	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/sweep"
	"gitlab-sardine-executor/vm/idle"
	"gitlab-sardine-executor/vm/virt"
)

// clock checks whether the clock of this host is kept right: certificates, expiry of machines
// and the clocks of guests depend on it.
func (d *doctor) clock() {
	var state unix.Timex
	if _, err := unix.Adjtimex(&state); err != nil {
		return
	}
	if state.Status&unix.STA_UNSYNC != 0 {
		d.advise("clock", Warning, "timedatectl set-ntp true", "nothing keeps the clock of this host right (NTP)")
		return
	}
	d.add("clock", OK, "synchronized")
}

// leftovers looks for machines and files that no job owns any more.
func (d *doctor) leftovers(ctx context.Context, host *virt.Host, dirs config.Dirs) {
	swept, err := sweep.Run(ctx, host, dirs, sweep.Options{DryRun: true, Now: time.Now()})
	if err != nil {
		d.add("machines", Warning, "%v", err)
	}
	if len(swept) > 0 {
		d.advise("machines", Warning, program+" sweep", "%d that no job owns, such as %s (%s)", len(swept), swept[0].Machine, swept[0].Reason)
	}
}

// service checks whether serve looks after the idle machines that the settings want.
func (d *doctor) service(settings *config.Settings, dirs config.Dirs) {
	wanted := uint(0)
	for _, section := range settings.Images {
		wanted += section.IdleMachines
	}
	if wanted == 0 {
		return
	}
	if idle.Abandoned(dirs.Jobs, time.Now()) {
		d.advise("serve", Warning, "systemctl enable --now "+program, "%d idle machines are wanted (idle_machines), and no serve runs: jobs boot their machines", wanted)
		return
	}
	ready, err := claim.Ready(dirs.Jobs, "")
	if err != nil {
		d.add("serve", Warning, "%v", err)
		return
	}
	d.add("serve", OK, "%d idle machines are ready", len(ready))
}

// user compares this user with that of a GitLab Runner that runs.
func (d *doctor) user() {
	for _, runner := range runnerUsers("/proc") {
		if runner != os.Geteuid() {
			d.advise("user", Warning, "sudo -u "+quote(userName(runner))+" "+program+" doctor",
				"GitLab Runner runs as %s, and this report is about %s", userName(runner), currentUser())
			return
		}
	}
}

// runnerUsers returns the users of the processes of GitLab Runner.
func runnerUsers(proc string) []int {
	files, err := filepath.Glob(filepath.Join(proc, "[0-9]*", "cmdline"))
	if err != nil {
		return nil
	}
	var users []int
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		args := bytes.Split(text, []byte{0})
		if filepath.Base(string(args[0])) != "gitlab-runner" || len(args) < 2 || string(args[1]) != "run" {
			continue
		}
		if _, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err != nil {
			continue
		}
		info, err := os.Stat(filepath.Dir(file))
		if err != nil {
			continue
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && !slices.Contains(users, int(stat.Uid)) {
			users = append(users, int(stat.Uid))
		}
	}
	return users
}
