// benchmarks makes docs/benchmarks.md and the plots in docs/images from the output of
// go test -bench and of test/bench, in Go's benchmark format. make bench runs them.
//
//	go run ./scripts/benchmarks DIR FILE
//
// DIR is the root of the repository, FILE the output.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: benchmarks DIR FILE")
		os.Exit(64)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "benchmarks:", err)
		os.Exit(1)
	}
}

func run(root, path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	measured, err := Parse(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	var failed []error
	for _, p := range plots {
		drawing, err := p.Draw(measured)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		failed = append(failed, os.WriteFile(filepath.Join(root, "docs", "images", p.File), []byte(drawing), 0o644))
	}
	if err := errors.Join(failed...); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, "docs", "benchmarks.md"), []byte(Page(measured)), 0o644)
}

// A Report is what the benchmarks printed.
type Report struct {
	// Host describes the machine: the lines "key: value" before the results.
	Host []string
	// Metrics by "Benchmark/sub metric"; the number of processors is cut off the name.
	Metrics map[string]float64
	order   []string
}

// Parse reads lines in Go's benchmark format
// (https://go.dev/design/14313-benchmark-format).
func Parse(text string) (*Report, error) {
	r := &Report{Metrics: make(map[string]float64)}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if key, value, ok := strings.Cut(strings.TrimSpace(line), ": "); ok && slices.Contains(hostKeys, key) {
			if entry := key + ": " + strings.TrimSpace(value); !slices.Contains(r.Host, entry) {
				r.Host = append(r.Host, entry)
			}
			continue
		}
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		if _, err := strconv.Atoi(fields[1]); err != nil {
			continue // a line of the log that begins in the same way
		}
		name := fields[0]
		if i := strings.LastIndex(name, "-"); i > 0 {
			if _, err := strconv.Atoi(name[i+1:]); err == nil {
				name = name[:i]
			}
		}
		for i := 2; i+1 < len(fields); i += 2 {
			value, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, fmt.Errorf("%s: %q is no number", name, fields[i])
			}
			key := strings.TrimPrefix(name, "Benchmark") + " " + fields[i+1]
			if _, known := r.Metrics[key]; known {
				return nil, fmt.Errorf("%s is there twice", key)
			}
			r.Metrics[key] = value
			r.order = append(r.order, key)
		}
	}
	if len(r.Metrics) == 0 {
		return nil, errors.New("there are no results of benchmarks")
	}
	return r, nil
}

// hostKeys are the lines that describe the machine.
var hostKeys = []string{"commit", "host", "kernel", "libvirt", "qemu", "cpu", "storage", "accelerator", "date"}

// A comparison is one row of the page: what this program took, and what the programs take
// that anybody has.
type comparison struct {
	benchmark string
	ours      string // metrics: OURS-s, THEIRS-s, OURS/THEIRS
	theirs    string
	what      string
	peer      string
	goal      string
}

// A group is a table of the page.
type group struct {
	title, text string
	plot        string
	rows        []comparison
}

var groups = []group{
	{
		title: "Where the seconds of a job go", plot: "benchmark-stages.svg",
		text: "Each stage with a script that does nothing, beside the commands of libvirt and OpenSSH that do the same by hand.",
		rows: []comparison{
			{"Stages/session", "prepare", byHand, "`prepare`, ordinary user", "`virsh create`, until the SSH banner", "1.10"},
			{"Stages/session", "run", "ssh-true", "`run`", "`ssh guest true`", ""},
			{"Stages/session", "cleanup", "virsh-destroy", "`cleanup`", "`virsh destroy`", ""},
			{"Stages/system", "prepare", byHand, "`prepare`, root, libvirt network", "`virsh create`, until the SSH banner", "1.10"},
			{"Stages/system", "run", "ssh-true", "`run`", "`ssh guest true`", ""},
			{"Stages/system", "cleanup", "virsh-destroy", "`cleanup`", "`virsh destroy`", ""},
		},
	},
	{
		title: "Starts without a boot",
		text:  "`prepare` from a memory snapshot, and with an idle machine of `serve`, beside a boot of the same guest.",
		rows: []comparison{
			{"Snapshot/session", "snapshot", "boot", "from a snapshot, ordinary user", "boot", ""},
			{"Snapshot/system", "snapshot", "boot", "from a snapshot, root", "boot", ""},
			{"Idle/session", "idle", "boot-room", "idle machine, ordinary user", "boot", ""},
			{"Idle/session", "idle", "ssh-true", "idle machine, ordinary user", "`ssh guest true`", "4"},
			{"Idle/system", "idle", "boot-room", "idle machine, root", "boot", ""},
			{"Idle/system", "idle", "ssh-true", "idle machine, root", "`ssh guest true`", "4"},
			{"Idle/session", "boot-full", "boot-room", "boot on a host full of idle machines", "boot on a host with room", ""},
		},
	},
	{
		title: "Pulls", plot: "benchmark-pulls.svg",
		text: "A disk of 1 GiB from a registry on this machine until it can be booted, beside `skopeo copy` into a directory, `gzip -dc`, and a sync.",
		rows: []comparison{
			{"Pull/gzip", "pull", "skopeo-gzip", "one gzip layer", "`skopeo copy`, `gzip -dc`", "0.35"},
			{"Pull/chunked", "pull", "skopeo-gzip", "chunked", "`skopeo copy`, `gzip -dc`", ""},
		},
	},
	{
		title: "Builds",
		text: "`build` with a script that changes one file, from the second build into a layout on: seal, power-off and export, beside\n" +
			"`qemu-img convert` of the disk; and the verification, which boots two machines, beside the boot of the build.",
		rows: []comparison{
			{"Build/full", "rest", "convert", "`build` without boot, script and verification, Debian", "`qemu-img convert`", "1.5"},
			{"Build/full", "verify", "boot", "verification, Debian", "boot", ""},
			{"Build/small", "rest", "convert", "`build` without boot, script and verification, small guest", "`qemu-img convert`", "1.5"},
			{"Build/small", "verify", "boot", "verification, small guest", "boot", ""},
		},
	},
}

const byHand = "virsh-create-banner"

// Page returns the Markdown.
func Page(r *Report) string {
	var out strings.Builder
	out.WriteString(intro)
	for _, line := range r.Host {
		out.WriteString("- " + line + "\n")
	}
	out.WriteString("\n")
	used := make(map[string]bool)
	for _, g := range groups {
		rows := g.table(r, used)
		if rows == "" {
			continue
		}
		fmt.Fprintf(&out, "## %s\n\n%s\n\n", g.title, g.text)
		if g.plot != "" {
			fmt.Fprintf(&out, "![%s](images/%s)\n\n", g.title, g.plot)
		}
		out.WriteString("| | seconds | against | seconds | ratio | at most |\n|---|--:|---|--:|--:|--:|\n" + rows + "\n")
	}
	var rest strings.Builder
	for _, key := range r.order {
		name, metric, _ := strings.Cut(key, " ")
		if used[key] || metric == "ns/op" || metric == "B/op" || metric == "allocs/op" {
			continue
		}
		fmt.Fprintf(&rest, "| %s | %s | %s |\n", name, metric, number(r.Metrics[key]))
	}
	if rest.Len() > 0 {
		out.WriteString("## Other measures\n\n| benchmark | metric | median |\n|---|---|--:|\n" + rest.String())
	}
	return strings.TrimRight(out.String(), "\n") + "\n"
}

func (g group) table(r *Report, used map[string]bool) string {
	var rows strings.Builder
	for _, c := range g.rows {
		ours, theirs, ratio := c.benchmark+" "+c.ours+"-s", c.benchmark+" "+c.theirs+"-s", c.benchmark+" "+c.ours+"/"+c.theirs
		value, measured := r.Metrics[ratio]
		if !measured {
			continue
		}
		used[ours], used[theirs], used[ratio] = true, true, true
		fmt.Fprintf(&rows, "| %s | %s | %s | %s | %s | %s |\n", c.what, number(r.Metrics[ours]), c.peer, number(r.Metrics[theirs]),
			strconv.FormatFloat(value, 'f', 2, 64), c.goal)
	}
	return rows.String()
}

// number writes three significant digits.
func number(v float64) string {
	switch {
	case v >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case v >= 1:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
	return strconv.FormatFloat(v, 'f', 3, 64)
}

const intro = `# Benchmarks

<!-- Made by make bench; do not edit. -->

Each number is a median of several rounds. Both sides of a row run in turn in the same minutes, so
that what slows the machine slows both: trust the ratios more than the seconds. ` + "`make bench`" + ` runs all
of it and writes this page and its plots; it needs nothing but the packages that ` + "`make deps`" + ` installs.

Measured on:

`
