//go:build boot

package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
)

// rounds of each measurement. What is reported is the median.
const rounds = 7

// BenchmarkStages measures the stages against what they are made of: prepare
// against virsh create and a wait for the SSH banner on the same disk, run of an
// empty script against ssh, cleanup against virsh destroy. The sides alternate.
func BenchmarkStages(b *testing.B) {
	b.Run("session", func(b *testing.B) { benchmarkStages(b, testbed.Session(b)) })
	b.Run("system", func(b *testing.B) { benchmarkStages(b, testbed.System(b)) })
}

func benchmarkStages(b *testing.B, mode *testbed.Mode) {
	s := newSite(b, mode)
	s.DefaultMachine = true
	s.Configure(b, `pull_policy = "if-not-present"`)
	machine := newPeer(b, s)
	runner, job := s.runner(b), s.job("")
	script := mode.WriteFile(b, filepath.Join(mode.Dir(b), "script"), "#!/usr/bin/env bash\n")
	ssh := newSSH(b, mode)

	times := map[string][]time.Duration{}
	add := func(name string, took time.Duration) { times[name] = append(times[name], took) }
	stage := func(name string, args ...string) gitlab.Execution {
		e := runner.Stage(b.Context(), job, name, args...)
		if e.ExitCode != 0 {
			b.Fatal(e)
		}
		add(name, e.Duration+e.OutputDelay)
		return e
	}
	for b.Loop() {
		for range rounds {
			add("virsh create, banner", machine.create(b))
			add("virsh destroy", machine.destroy(b))
			stage("config")
			address := guestAddress(b, stage("prepare"))
			stage("run", script, gitlab.StageBuildScript)
			add("ssh true", ssh.run(b, address))
			stage("cleanup")
		}
	}
	compare(b, times, "config", "")
	compare(b, times, "prepare", "virsh create, banner")
	compare(b, times, "run", "ssh true")
	compare(b, times, "cleanup", "virsh destroy")
}

// BenchmarkSnapshot measures prepare of a machine that goes on from a snapshot against
// one that boots, on the user network of both modes.
func BenchmarkSnapshot(b *testing.B) {
	b.Run("session", func(b *testing.B) { benchmarkSnapshot(b, testbed.Session(b)) })
	b.Run("system", func(b *testing.B) { benchmarkSnapshot(b, testbed.System(b)) })
}

func benchmarkSnapshot(b *testing.B, mode *testbed.Mode) {
	s := newSite(b, mode)
	s.DefaultMachine = true
	settings := []string{`pull_policy = "if-not-present"`, `network = "user"`}
	runner, job := s.runner(b), s.job("")
	times := map[string][]time.Duration{}
	prepare := func(name string, settings ...string) {
		s.Configure(b, settings...)
		e := runner.Stage(b.Context(), job, "prepare")
		if e.ExitCode != 0 {
			b.Fatal(e)
		}
		times[name] = append(times[name], e.Duration+e.OutputDelay)
		if e := runner.Stage(b.Context(), job, "cleanup"); e.ExitCode != 0 {
			b.Fatal(e)
		}
	}
	snapshot := append(slices.Clone(settings), "memory_snapshot = true")
	for b.Loop() {
		prepare("making", snapshot...)
		for range rounds {
			prepare("boot", settings...)
			prepare("snapshot", snapshot...)
		}
	}
	b.Logf("the job that makes the snapshot: %.3f s", times["making"][0].Seconds())
	compare(b, times, "snapshot", "boot")
}

// compare reports the medians of a stage and of what it is measured against, in seconds, and
// their ratio.
func compare(b *testing.B, times map[string][]time.Duration, stage, peer string) {
	ours := median(times[stage])
	b.ReportMetric(ours.Seconds(), unit(stage)+"-s")
	if peer == "" {
		b.Logf("%-8s %6.3f s", stage, ours.Seconds())
		return
	}
	theirs := median(times[peer])
	ratio := ours.Seconds() / theirs.Seconds()
	b.ReportMetric(theirs.Seconds(), unit(peer)+"-s")
	b.ReportMetric(ratio, unit(stage)+"/"+unit(peer))
	b.Logf("%-8s %6.3f s   %-20s %6.3f s   ratio %.2f, difference %+.3f s",
		stage, ours.Seconds(), peer, theirs.Seconds(), ratio, (ours - theirs).Seconds())
}

// unit makes a unit of a metric, which has no spaces: "virsh create, banner" is
// virsh-create-banner.
func unit(name string) string {
	return strings.Join(strings.FieldsFunc(name, func(r rune) bool { return r == ' ' || r == ',' || r == '/' }), "-")
}

func median(times []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(times))
	return sorted[len(sorted)/2]
}

var guestReady = regexp.MustCompile(`Guest ready at (\S+) as`)

func guestAddress(b *testing.B, prepare gitlab.Execution) string {
	b.Helper()
	match := guestReady.FindStringSubmatch(prepare.Stderr)
	if match == nil {
		b.Fatalf("prepare names no address: %s", prepare)
	}
	return match[1]
}

// A peer is a machine like that of a job, which virsh makes.
type peer struct {
	mode    *testbed.Mode
	domain  libvirtxml.Domain
	base    string
	overlay string
	xml     string
	forward int // port on 127.0.0.1 that leads to the guest's SSH server; 0: the network has leases
}

const peerName = "peer"

// newPeer takes the domain of a job that runs, and the base of its disk.
func newPeer(b *testing.B, s *site) *peer {
	b.Helper()
	runner, job := s.runner(b), s.job("")
	if e := runner.Stage(b.Context(), job, "prepare"); e.ExitCode != 0 {
		b.Fatal(e)
	}
	defer runner.Stage(context.WithoutCancel(b.Context()), job, "cleanup")
	p := &peer{mode: s.Mode}
	name := strings.TrimSpace(s.Mode.Virsh(b, "list", "--name"))
	if err := p.domain.Unmarshal(s.Mode.Virsh(b, "dumpxml", "--security-info", name)); err != nil {
		b.Fatal(err)
	}
	disks, err := filepath.Glob(filepath.Join(s.Storage, "images", "*", "*.qcow2"))
	if err != nil || len(disks) != 1 {
		b.Fatalf("the store holds the disks %v (%v), want one", disks, err)
	}
	dir := s.Mode.Dir(b)
	p.base, p.overlay, p.xml = disks[0], filepath.Join(dir, "overlay.qcow2"), filepath.Join(dir, "domain.xml")
	p.domain.Name, p.domain.UUID, p.domain.ID, p.domain.Metadata = peerName, "", nil, nil
	disk := &p.domain.Devices.Disks[0]
	disk.Source.File.File, disk.BackingStore = p.overlay, nil
	disk.Source.Index = 0
	// The guest writes to a console here, too: that takes part of its boot.
	p.domain.Devices.Consoles = nil
	for i := range p.domain.Devices.Serials {
		if source := p.domain.Devices.Serials[i].Source; source != nil && source.File != nil {
			source.File.Path = filepath.Join(dir, "console.log")
		}
	}
	for i := range p.domain.Devices.Interfaces {
		nic := &p.domain.Devices.Interfaces[i]
		// The MAC address stays: it has the address that the filter lets through, which
		// stays reserved when the job's machine is gone.
		nic.Target = nil
		if nic.FilterRef != nil {
			nic.FilterRef.Filter = p.copyFilter(b, nic.FilterRef.Filter)
		}
	}
	if p.domain.QEMUCommandline != nil {
		p.useSlirp(b)
	}
	text, err := p.domain.Marshal()
	if err != nil {
		b.Fatal(err)
	}
	s.Mode.WriteFile(b, p.xml, text)
	return p
}

// copyFilter keeps the job's network filter, which goes with the job, under another
// name.
func (p *peer) copyFilter(b *testing.B, name string) string {
	b.Helper()
	var filter libvirtxml.NWFilter
	if err := filter.Unmarshal(p.mode.Virsh(b, "nwfilter-dumpxml", name)); err != nil {
		b.Fatal(err)
	}
	filter.Name, filter.UUID = peerName, ""
	text, err := filter.Marshal()
	if err != nil {
		b.Fatal(err)
	}
	p.mode.Virsh(b, "nwfilter-define", p.mode.WriteFile(b, filepath.Join(filepath.Dir(p.xml), "filter.xml"), text))
	b.Cleanup(func() { p.mode.Virsh(b, "nwfilter-undefine", peerName) })
	return peerName
}

// useSlirp replaces the job's passt, which is gone with the job, by QEMU's own
// user network: of the two it starts faster, for it is no process of its own.
func (p *peer) useSlirp(b *testing.B) {
	b.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer listener.Close()
	p.forward = listener.Addr().(*net.TCPAddr).Port
	for i := range p.domain.QEMUCommandline.Args {
		arg := &p.domain.QEMUCommandline.Args[i]
		if _, rest, ok := strings.Cut(arg.Value, "stream,id="); ok {
			id, _, _ := strings.Cut(rest, ",")
			arg.Value = fmt.Sprintf("user,id=%s,hostfwd=tcp:127.0.0.1:%d-:22", id, p.forward)
		}
	}
}

// create starts the machine and waits for the banner of its SSH server.
func (p *peer) create(b *testing.B) time.Duration {
	b.Helper()
	_ = os.Remove(p.overlay)
	p.mode.Run(b, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", p.base, p.overlay)
	ctx, cancel := context.WithTimeout(b.Context(), 5*time.Minute)
	defer cancel()
	begin := time.Now()
	p.mode.Virsh(b, "create", p.xml)
	// A probe that a booting guest has lost must not delay the next one.
	banner := make(chan struct{}, 1)
	for {
		if address := p.address(b); address != "" {
			go func() {
				if greets(ctx, address) {
					select {
					case banner <- struct{}{}:
					default:
					}
				}
			}()
		}
		select {
		case <-ctx.Done():
			b.Fatal("the peer's machine does not answer")
		case <-banner:
			return time.Since(begin)
		case <-time.After(peerPoll):
		}
	}
}

// peerPoll is how often the peer is asked for its banner.
const peerPoll = 50 * time.Millisecond

// address is that of the peer's SSH server; empty while it is not known.
func (p *peer) address(b *testing.B) string {
	b.Helper()
	if p.forward != 0 {
		return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.forward))
	}
	field := strings.Fields(p.mode.Virsh(b, "domifaddr", peerName))
	if len(field) < 4 {
		return ""
	}
	address, _, _ := strings.Cut(field[3], "/")
	return net.JoinHostPort(address, "22")
}

// greets says whether an SSH server answers at address soon.
func greets(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	banner := make([]byte, len("SSH-"))
	_, err = conn.Read(banner)
	return err == nil && string(banner) == "SSH-"
}

func (p *peer) destroy(b *testing.B) time.Duration {
	b.Helper()
	begin := time.Now()
	p.mode.Virsh(b, "destroy", peerName)
	return time.Since(begin)
}

// sshClient is OpenSSH's client, which logs in as the test guest's user.
type sshClient struct {
	mode    *testbed.Mode
	askpass string
}

func newSSH(b *testing.B, mode *testbed.Mode) *sshClient {
	b.Helper()
	askpass := mode.WriteFile(b, filepath.Join(mode.Dir(b), "askpass"), "#!/bin/sh\necho vagrant\n")
	if err := os.Chmod(askpass, 0o755); err != nil {
		b.Fatal(err)
	}
	return &sshClient{mode, askpass}
}

func (c *sshClient) run(b *testing.B, address string) time.Duration {
	b.Helper()
	return c.runWith(b, address, "true", "")
}

func (c *sshClient) runWith(b *testing.B, address, command, stdin string) time.Duration {
	b.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		b.Fatal(err)
	}
	cmd := c.mode.Command(b.Context(), "ssh", "-F", "/dev/null", "-q", "-p", port,
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "PreferredAuthentications=password",
		"vagrant@"+host, command)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(cmd.Env, "SSH_ASKPASS="+c.askpass, "SSH_ASKPASS_REQUIRE=force")
	begin := time.Now()
	if output, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("ssh: %v\n%s", err, output)
	}
	return time.Since(begin)
}

// BenchmarkScripts measures how long a script takes to start, by its size, against ssh: a
// small one against ssh true, one of megabytes against cat of it by ssh. The sides alternate.
func BenchmarkScripts(b *testing.B) {
	b.Run("session", func(b *testing.B) { benchmarkScripts(b, testbed.Session(b)) })
	b.Run("system", func(b *testing.B) { benchmarkScripts(b, testbed.System(b)) })
}

func benchmarkScripts(b *testing.B, mode *testbed.Mode) {
	s := newSite(b, mode)
	runner, job, ssh := s.runner(b), s.job(""), newSSH(b, mode)
	prepare := runner.Stage(b.Context(), job, "prepare")
	if prepare.ExitCode != 0 {
		b.Fatal(prepare)
	}
	defer runner.Stage(context.WithoutCancel(b.Context()), job, "cleanup")
	address := guestAddress(b, prepare)
	for _, test := range []struct {
		name   string
		size   int // of the script, in bytes
		rounds int
	}{{"empty", 0, 21}, {"6-KB", 6 << 10, 21}, {"10-MB", 10 << 20, 5}} {
		b.Run(test.name, func(b *testing.B) {
			// GitLab's scripts set some hundred variables. A large one ends as soon as it has started.
			const line = "export CI_VARIABLE_WITH_A_NAME=$'and a value of usual length, as GitLab sets some hundred of'\n"
			text := "#!/usr/bin/env bash\n" + strings.Repeat(line, test.size/len(line))
			script := filepath.Join(mode.Dir(b), "script")
			command, input := "true", ""
			if test.size > 1<<20 {
				text = "exit 0\n" + text
				command, input = "cat >/dev/null", text
			}
			mode.WriteFile(b, script, text)
			times := map[string][]time.Duration{}
			for b.Loop() {
				for range test.rounds {
					e := runner.Stage(b.Context(), job, "run", script, gitlab.StageBuildScript)
					if e.ExitCode != 0 {
						b.Fatal(e)
					}
					times["run"] = append(times["run"], e.Duration+e.OutputDelay)
					times["ssh "+command] = append(times["ssh "+command], ssh.runWith(b, address, command, input))
				}
			}
			compare(b, times, "run", "ssh "+command)
		})
	}
}
