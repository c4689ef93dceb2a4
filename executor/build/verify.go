package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"gitlab-sardine-executor/executor"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/store"
	"gitlab-sardine-executor/vm/guestssh"
)

// verify boots two machines of the new image at the same time, as jobs would, and compares
// what must differ. If it fails, the image is removed from the store.
func (b *builder) verify(ctx context.Context, image oci.Reference) (err error) {
	began := time.Now()
	end := b.Log.Section("sardine_verify", "Verifying: two machines of the new image")
	defer end()
	local, err := store.Open(b.dirs.Store)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("verify the new image: %w", err), forget(ctx, local, image.Digest()))
		}
	}()
	if err := b.unpack(ctx, local, image); err != nil {
		return err
	}
	var machines [2]*machine
	defer func() {
		err = errors.Join(err, removeAll(ctx, machines[:]))
	}()
	v := *b
	v.Log = joblog.New(b.Log.Writer()) // sections of two machines would overlap
	var found [2]identity
	group, working := errgroup.WithContext(ctx)
	for i := range machines {
		group.Go(func() (err error) {
			if machines[i], err = v.startMachine(working, joblog.New(io.Discard), image, ifNotPresent, false); err != nil {
				return err
			}
			if err := machines[i].waitReady(working); err != nil {
				return err
			}
			found[i], err = machines[i].identity(working)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := found[0].differs(found[1]); err != nil {
		return err
	}
	b.Log.Say("Verified: addresses, host keys and machine IDs differ (%s)", joblog.Seconds(time.Since(began)))
	return nil
}

// removeAll removes machines side by side, since libvirt takes long to destroy a domain. Some may
// be nil.
func removeAll(ctx context.Context, machines []*machine) error {
	failed := make([]error, len(machines))
	var removing sync.WaitGroup
	for i, m := range machines {
		if m != nil {
			removing.Go(func() { failed[i] = m.remove(ctx) })
		}
	}
	removing.Wait()
	return errors.Join(failed...)
}

// ifNotPresent pulls an image unless the store has it.
var ifNotPresent = store.PullOptions{Policies: []oci.PullPolicy{oci.PullIfNotPresent}}

// unpack puts the new image into the store.
func (b *builder) unpack(ctx context.Context, local *store.Store, image oci.Reference) error {
	pull := ifNotPresent
	progress := b.Progress("Unpacking")
	defer progress.Close()
	pull.Progress = progress
	unpacked, err := local.Pull(ctx, image, executor.CheckedBy(ctx, b.host, b.settings, executor.PullLimits(b.Options.Settings, b.settings, pull)))
	if err != nil {
		return err
	}
	return unpacked.Close()
}

// forget removes the image from the store.
func forget(ctx context.Context, local *store.Store, image digest.Digest) error {
	_, err := local.Prune(context.WithoutCancel(ctx), store.PruneOptions{
		UnusedSince: time.Now().Add(time.Hour), Keep: store.KeepNothing,
		InUse: func(d digest.Digest) bool { return d != image },
	})
	return err
}

// An identity is what must differ between two machines.
type identity struct {
	address string
	// hostKeys are the keys that the guest has, and machineID its ID; empty if it has none.
	hostKeys  []string
	machineID string
}

// askIdentity prints the identity of the guest. Host keys are told apart by their public half.
const askIdentity = `cat /etc/machine-id 2>/dev/null | sed 's/^/machine-id /'
for key in /etc/ssh/ssh_host_*_key.pub; do
	[ ! -f "$key" ] || sed 's/^/host-key /' "$key"
done
exit 0`

func (m *machine) identity(ctx context.Context) (identity, error) {
	ctx, cancel := context.WithTimeout(ctx, m.b.settings.Timeout)
	defer cancel()
	var said bytes.Buffer
	_, err := m.started.Instance.Run(ctx, guestssh.Command{Line: asRoot(askIdentity), Stdout: &limitedWriter{&said, maxIdentity}, Stderr: io.Discard})
	if err != nil {
		return identity{}, err
	}
	id := parseIdentity(said.String())
	id.address = m.started.Record().Address
	id.hostKeys = append(id.hostKeys, hostKey(m.started.Record().HostKey))
	return id, nil
}

func parseIdentity(text string) (id identity) {
	for _, line := range strings.Split(text, "\n") {
		switch kind, value, _ := strings.Cut(strings.TrimSpace(line), " "); kind {
		case "machine-id":
			id.machineID = value
		case "host-key":
			id.hostKeys = append(id.hostKeys, hostKey(value))
		}
	}
	return id
}

// hostKey returns type and key, without the comment.
func hostKey(line string) string {
	fields := strings.Fields(line)
	return strings.Join(fields[:min(2, len(fields))], " ")
}

// differs returns an error that names what is equal.
func (a identity) differs(b identity) error {
	if a.address == b.address {
		return fmt.Errorf("both machines have the address %s", a.address)
	}
	if a.machineID != "" && a.machineID == b.machineID {
		return fmt.Errorf("both machines have the machine ID %.64q: /etc/machine-id must be empty in an image", a.machineID)
	}
	seen := make(map[string]bool)
	for _, key := range a.hostKeys {
		seen[key] = true
	}
	for _, key := range b.hostKeys {
		if key != "" && seen[key] {
			kind, _, _ := strings.Cut(key, " ")
			return fmt.Errorf("both machines have the same SSH host key (%.40q): an image must have none", kind)
		}
	}
	return nil
}

// maxIdentity bounds what a guest may say, in bytes.
const maxIdentity = 64 << 10

// A limitedWriter drops what is too much.
type limitedWriter struct {
	buffer *bytes.Buffer
	left   int
}

func (w *limitedWriter) Write(p []byte) (int, error) {
	n := min(len(p), w.left)
	w.left -= n
	w.buffer.Write(p[:n])
	return len(p), nil
}
