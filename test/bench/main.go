// Command bench measures pulls against what people do without this program:
// skopeo copy to a layout, gzip -dc of the disk layer to a file, sync. Both sides
// run in turn, against Debian's docker-registry on 127.0.0.1, with the same
// generated disk: half of it random, half text.
//
//	go run ./test/bench [-size 1024] [-rounds 5] [-dir DIR]
//
// It prints medians and ratios and fails if a goal is missed. It is not part of
// `go test ./...`: it takes minutes and several gigabytes.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/export"
	"gitlab-sardine-executor/oci/transfer"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "pull" {
		exit(pullHere(os.Args[2], os.Args[3]))
	}
	b := bench{ctx: context.Background()}
	flag.Int64Var(&b.size, "size", 1024, "size of the raw disk in MiB")
	flag.IntVar(&b.rounds, "rounds", 5, "how often each side runs, after a round that does not count")
	flag.StringVar(&b.dir, "dir", "", "directory for all files, kept (default a temporary one)")
	flag.Parse()
	exit(b.run())
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A bench is one run of all measurements.
type bench struct {
	ctx    context.Context
	size   int64 // MiB
	rounds int
	dir    string

	registry *registry
	goals    table
	results  []string // in Go's benchmark format
}

func (b *bench) run() (err error) {
	if b.dir == "" {
		if b.dir, err = os.MkdirTemp("", "oci-bench-"); err != nil {
			return err
		}
		defer os.RemoveAll(b.dir)
	}
	if b.registry, err = startRegistry(b.dir); err != nil {
		return err
	}
	defer b.registry.stop()
	if err := b.pushImages(); err != nil {
		return err
	}
	if err := b.measurePulls(); err != nil {
		return err
	}
	if err := b.measureSecondVersion(); err != nil {
		return err
	}
	if err := b.measureRequests(); err != nil {
		return err
	}
	missed := b.goals.print(os.Stdout)
	for _, line := range b.results { // in Go's benchmark format, for scripts/benchmarks
		fmt.Println(line)
	}
	return missed
}

// pushImages puts the disk into the registry: as one gzip layer, chunked, and
// chunked with one block in twenty changed.
func (b *bench) pushImages() error {
	disk, changed := filepath.Join(b.dir, "disk.raw"), filepath.Join(b.dir, "changed", "disk.raw")
	if err := generate(disk, b.size<<20); err != nil {
		return err
	}
	if err := change(disk, changed); err != nil {
		return err
	}
	for _, image := range []struct{ tag, disk, format string }{
		{"gzip", disk, "sardinecake"}, {"chunked", disk, "chunked"}, {"second", changed, "chunked"},
	} {
		fmt.Fprintf(os.Stderr, "exporting %s\n", image.tag)
		layout, err := oci.ParseReference("oci:" + filepath.Join(b.dir, "layout") + ":" + image.tag)
		if err != nil {
			return err
		}
		o := export.Options{Disks: []export.Disk{{Path: image.disk, Format: "raw"}}, Format: image.format}
		if _, err := export.Export(b.ctx, layout, o); err != nil {
			return err
		}
		if _, err := transfer.Push(b.ctx, layout, b.registry.reference(image.tag), transfer.Options{}); err != nil {
			return err
		}
	}
	return os.RemoveAll(filepath.Join(b.dir, "layout"))
}
