package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"gitlab-sardine-executor/internal/diskusage"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/store"
)

// A pulled is what one pull cost.
type pulled struct {
	Seconds     float64 `json:"seconds"`
	Transferred int64   `json:"transferred"` // bytes of blobs
	Written     int64   `json:"written"`     // bytes that went to the disk
	Disk        int64   `json:"disk"`        // bytes that the base disks take
	memory      int64   // peak, in bytes
}

// pullHere pulls in this process and prints what it cost, but for the memory.
func pullHere(text, root string) error {
	images, err := store.Open(root)
	if err != nil {
		return err
	}
	counter := new(counter)
	began := time.Now()
	image, err := images.Pull(context.Background(), mustParse(text), store.PullOptions{Progress: counter})
	if err != nil {
		return err
	}
	p := pulled{Seconds: time.Since(began).Seconds(), Transferred: counter.Load()}
	if p.Written, err = bytesWritten(); err != nil {
		return err
	}
	for _, disk := range image.Disks {
		info, err := os.Stat(filepath.Join(image.Dir, disk.Name))
		if err != nil {
			return err
		}
		p.Disk += diskusage.Of(info)
	}
	return json.NewEncoder(os.Stdout).Encode(p)
}

// counter is a Progress that only counts.
type counter struct{ atomic.Int64 }

func (c *counter) Waiting(string)                   {}
func (c *counter) Start(string, int64) oci.Transfer { return counting{c} }

type counting struct{ c *counter }

func (t counting) Add(n int64) { t.c.Int64.Add(n) }
func (t counting) Done(error)  {}

// bytesWritten is what this process made go to disks (proc(5), write_bytes).
func bytesWritten() (int64, error) {
	raw, err := os.ReadFile("/proc/self/io")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		if value, ok := strings.CutPrefix(line, "write_bytes: "); ok {
			return strconv.ParseInt(strings.TrimSpace(value), 10, 64)
		}
	}
	return 0, errors.New("/proc/self/io does not say write_bytes")
}

// pull pulls in a process of its own, for its memory.
func (b *bench) pull(tag, root string) (pulled, error) {
	syscall.Sync()
	cmd := exec.CommandContext(b.ctx, "/proc/self/exe", "pull", b.registry.reference(tag).String(), root)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return pulled{}, fmt.Errorf("pulling %s: %w", tag, err)
	}
	var p pulled
	if err := json.Unmarshal(out, &p); err != nil {
		return pulled{}, err
	}
	p.memory = cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
	return p, nil
}

// copyAndUnpack is the other side.
func (b *bench) copyAndUnpack() (copied, total float64, err error) {
	dir := filepath.Join(b.dir, "other")
	if err := os.RemoveAll(dir); err != nil {
		return 0, 0, err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return 0, 0, err
	}
	syscall.Sync()
	began := time.Now()
	layout := filepath.Join(dir, "layout")
	skopeo := exec.CommandContext(b.ctx, "skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false",
		"docker://"+b.registry.reference("gzip").String(), "oci:"+layout+":gzip")
	skopeo.Stderr = os.Stderr
	if err := skopeo.Run(); err != nil {
		return 0, 0, fmt.Errorf("skopeo copy: %w", err)
	}
	copied = time.Since(began).Seconds()
	blob, err := largest(filepath.Join(layout, "blobs", "sha256"))
	if err != nil {
		return 0, 0, err
	}
	out, err := os.Create(filepath.Join(dir, "disk.raw"))
	if err != nil {
		return 0, 0, err
	}
	gzip := exec.CommandContext(b.ctx, "gzip", "-dc", blob)
	gzip.Stdout, gzip.Stderr = out, os.Stderr
	if err := errors.Join(gzip.Run(), out.Sync(), out.Close()); err != nil {
		return 0, 0, fmt.Errorf("gzip -dc: %w", err)
	}
	total = time.Since(began).Seconds()
	return copied, total, os.RemoveAll(dir)
}

func largest(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	name, size := "", int64(-1)
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			return "", err
		}
		if info.Size() > size {
			name, size = entry.Name(), info.Size()
		}
	}
	return filepath.Join(dir, name), nil
}

// freshPull pulls into an empty store, which it removes.
func (b *bench) freshPull(tag string) (pulled, error) {
	root := filepath.Join(b.dir, "store-"+tag)
	if err := os.RemoveAll(root); err != nil {
		return pulled{}, err
	}
	p, err := b.pull(tag, root)
	return p, errors.Join(err, os.RemoveAll(root))
}

func (b *bench) measurePulls() error {
	var copied, other []float64
	runs := map[string][]pulled{}
	// The first round does not count: on a virtual machine it pays for memory that the host
	// has taken back.
	for round := range b.rounds + 1 {
		c, o, err := b.copyAndUnpack()
		if err != nil {
			return err
		}
		if round == 1 {
			copied, other = nil, nil
			clear(runs)
		}
		copied, other = append(copied, c), append(other, o)
		fmt.Fprintf(os.Stderr, "round %d: skopeo %.2f s, with gzip and sync %.2f s", round, c, o)
		for _, tag := range []string{"gzip", "chunked"} {
			p, err := b.freshPull(tag)
			if err != nil {
				return err
			}
			runs[tag] = append(runs[tag], p)
			fmt.Fprintf(os.Stderr, ", %s %.2f s", tag, p.Seconds)
		}
		fmt.Fprintln(os.Stderr)
	}
	b.goals.add("skopeo copy", fmt.Sprintf("%.2f s", median(copied)), "", true)
	b.goals.add("skopeo copy, gzip -dc, sync", fmt.Sprintf("%.2f s", median(other)), "", true)
	b.addPulls("gzip", runs["gzip"], median(other), 0.35)
	b.addPulls("chunked", runs["chunked"], median(other), 0.35)
	return nil
}

func (b *bench) addPulls(tag string, runs []pulled, other, most float64) {
	var seconds, written, memory []float64
	for _, p := range runs {
		seconds = append(seconds, p.Seconds)
		written = append(written, float64(p.Written)/float64(p.Disk))
		memory = append(memory, float64(p.memory)/(1<<20))
	}
	ratio := median(seconds) / other
	b.goals.add("pull "+tag, fmt.Sprintf("%.2f s, %.2f ×", median(seconds), ratio), fmt.Sprintf("≤ %.2f ×", most), ratio <= most)
	b.goals.add("  written / base disk", fmt.Sprintf("%.3f", slices.Max(written)), "≤ 1.1", slices.Max(written) <= 1.1)
	b.results = append(b.results, fmt.Sprintf("BenchmarkPull/%s %d %.3f pull-s %.3f skopeo-gzip-s %.3f pull/skopeo-gzip", tag, len(runs), median(seconds), other, ratio))
	b.goals.add("  peak memory", fmt.Sprintf("%.0f MiB", slices.Max(memory)), "≤ 200 MiB", slices.Max(memory) <= 200)
}

// measureSecondVersion pulls version 2 where version 1 is.
func (b *bench) measureSecondVersion() error {
	root := filepath.Join(b.dir, "store-versions")
	defer os.RemoveAll(root)
	first, err := b.pull("chunked", root)
	if err != nil {
		return err
	}
	second, err := b.pull("second", root)
	if err != nil {
		return err
	}
	ratio := float64(second.Transferred) / float64(first.Transferred)
	b.goals.add("version 2, transferred", fmt.Sprintf("%.1f %% of version 1, %.2f s", ratio*100, second.Seconds), "≤ 15 %", ratio <= 0.15)
	return nil
}

// measureRequests asks again for an image that is there.
func (b *bench) measureRequests() error {
	images, err := store.Open(filepath.Join(b.dir, "store-requests"))
	if err != nil {
		return err
	}
	defer os.RemoveAll(images.Root())
	ref := mustParse(b.registry.counted + "/bench:chunked")
	var image *oci.Image
	var before int64
	for range 2 {
		before = b.registry.requests.Load()
		if image, err = images.Pull(b.ctx, ref, store.PullOptions{Policies: []oci.PullPolicy{oci.PullAlways}}); err != nil {
			return err
		}
		if err := image.Close(); err != nil {
			return err
		}
	}
	n := b.registry.requests.Load() - before
	b.goals.add("requests, nothing new", strconv.FormatInt(n, 10), "≤ 2", n <= 2)
	return nil
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
