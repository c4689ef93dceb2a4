package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/internal/testbed/host"
)

// An Inventory is what there was on the host at a time: domains, files,
// listening ports, processes and network devices.
type Inventory struct {
	mode  *Mode
	root  string
	items map[string]bool // "domain: sardine-…", "port: 127.0.0.1:40022"
}

// kept are patterns of what outlives jobs in the program's storage: the images,
// locks, what was found out about the host, the consoles of guests that did not come
// up, caches, and snapshots.
var kept = []string{"images", "oci", "references", "locks", "consoles", "caches", "clones/snapshots", "jobs/.admission", "jobs/.admitted", "jobs/.idle", "jobs/.serve", "jobs/.nesting", "tools", "jobs/kvm-*", "jobs/no-isolated-ports"}

// daemons serve any number of machines, and come and go by themselves.
var daemons = []string{"libvirtd", "virtqemud", "virtlogd", "virtlockd", "virtnetworkd", "dnsmasq"}

// leftoverTimeout is the time that the last parts of a machine get to go, after
// whoever removed it said that it is gone.
const leftoverTimeout = 5 * time.Second

// TakeInventory notes what there is now. root is the program's storage.
func TakeInventory(t testing.TB, mode *Mode, root string) *Inventory {
	t.Helper()
	inventory := &Inventory{mode: mode, root: root}
	mode.Virsh(t, "list") // the first connection starts a daemon
	var err error
	if inventory.items, err = inventory.take(t.Context()); err != nil {
		t.Fatal(err)
	}
	return inventory
}

// CheckNothingLeft is an error if there is something now that was not there when
// the inventory was taken.
func (i *Inventory) CheckNothingLeft(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), leftoverTimeout)
	defer cancel()
	for {
		left, err := i.left(ctx)
		if err == nil && len(left) == 0 {
			return
		}
		select {
		case <-ctx.Done():
			if len(left) == 0 { // else the last look was cut off
				t.Errorf("look for leftovers: %v", err)
			}
			for _, item := range left {
				t.Errorf("left behind: %s", item)
			}
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (i *Inventory) left(ctx context.Context) ([]string, error) {
	now, err := i.take(ctx)
	var left []string
	for item := range now {
		if !i.items[item] {
			left = append(left, item)
		}
	}
	slices.Sort(left)
	return left, err
}

func (i *Inventory) take(ctx context.Context) (map[string]bool, error) {
	items := map[string]bool{}
	add := func(kind, item string) { items[kind+": "+item] = true }
	return items, errors.Join(
		i.domains(ctx, add),
		i.files(add),
		ports(add),
		processes(add),
		devices(add),
	)
}

func (i *Inventory) domains(ctx context.Context, add func(kind, item string)) error {
	output, err := i.mode.Command(ctx, "virsh", "--quiet", "--connect", i.mode.Connect, "list", "--all", "--name").Output()
	if err != nil {
		return fmt.Errorf("list domains: %w", err)
	}
	for name := range strings.FieldsSeq(string(output)) {
		add("domain", name)
	}
	return nil
}

// files are those in the program's storage, except what is kept, and those where
// programs put what they need while they run.
func (i *Inventory) files(add func(kind, item string)) error {
	roots := []string{i.root, host.ScratchDir, host.User.RuntimeDir}
	for _, root := range roots {
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil // gone since its directory was read
			case err != nil:
				return err
			case i.outlives(path) && entry.IsDir():
				return fs.SkipDir
			case i.outlives(path):
				return nil
			case !entry.IsDir():
				add("file", path)
			case strings.HasPrefix(path, i.root+"/") && filepath.Dir(path) != i.root:
				add("directory", path)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("list files: %w", err)
		}
	}
	return nil
}

// outlives says whether a file or directory is none of a job's.
func (i *Inventory) outlives(path string) bool {
	if path == filepath.Join(host.User.RuntimeDir, "libvirt") {
		return true // the user's libvirtd
	}
	name, err := filepath.Rel(i.root, path)
	return err == nil && slices.ContainsFunc(kept, func(pattern string) bool {
		match, err := filepath.Match(pattern, name)
		return err == nil && match
	})
}

// ports are the TCP sockets that listen, of all protocols.
func ports(add func(kind, item string)) error {
	const listening = "0A" // TCP_LISTEN, include/net/tcp_states.h
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		content, err := os.ReadFile(table)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(content)) {
			if field := strings.Fields(line); len(field) > 3 && field[3] == listening {
				_, port, _ := strings.Cut(field[1], ":")
				number, err := strconv.ParseUint(port, 16, 16)
				if err != nil {
					return fmt.Errorf("%s: %w", table, err)
				}
				add("port", fmt.Sprintf("%d (%s)", number, filepath.Base(table)))
			}
		}
	}
	return nil
}

// processes are those that live, but for the daemons.
func processes(add func(kind, item string)) error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		// A process that is gone by now, and a zombie, have no command line.
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(line) == 0 {
			continue
		}
		args := strings.Split(string(bytes.TrimRight(line, "\x00")), "\x00")
		if name := filepath.Base(args[0]); !slices.Contains(daemons, name) && name != "virsh" {
			add("process", filepath.Base(dir)+" "+strings.Join(args, " "))
		}
	}
	return nil
}

// devices are network devices, such as a machine's tap.
func devices(add func(kind, item string)) error {
	entries, err := os.ReadDir("/sys/class/net")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		add("network device", entry.Name())
	}
	return nil
}
