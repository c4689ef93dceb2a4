package admission

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/gofrs/flock"
	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/idle"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt"
	"gitlab-sardine-executor/vm/virt/virttest"
)

// testMemory is the memory of a machine of virttest, in bytes.
const testMemory = 1 << 20

func startIdle(t *testing.T, h *virt.Host, r record.Record) *virt.Domain {
	t.Helper()
	metadata, err := r.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	return virttest.Start(t, h, &libvirtxml.Domain{Name: idle.NewName(), Metadata: metadata})
}

// roomFor returns the reserve that leaves memory for that many machines.
func roomFor(t *testing.T, h *virt.Host, machines int64) int64 {
	t.Helper()
	size, err := h.Size(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return int64(size.Memory) - machines*testMemory
}

// A job does not wait for idle machines: those in its way go, and no more.
func TestIdleMachinesGiveWay(t *testing.T) {
	h := virttest.OpenEmpty(t)
	first, second := startIdle(t, h, record.Record{Idle: true}), startIdle(t, h, record.Record{Idle: true})
	startIdle(t, h, record.Record{Job: "1", Machine: "sardine-00000000-1"})
	var asked []uint64
	policy := Policy{
		Slots: 2, Reserve: roomFor(t, h, 4), Timeout: time.Minute,
		Waiting: func(reason string) { t.Errorf("it waits: %s", reason) },
		Evict: func(ctx context.Context, memory uint64) error {
			asked = append(asked, memory)
			return first.Destroy(ctx)
		},
	}
	release, err := policy.Admit(t.Context(), h, "sardine-00000000-2", 2*testMemory, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := release(); err != nil {
		t.Error(err)
	}
	if len(asked) != 1 || asked[0] != testMemory {
		t.Errorf("asked to evict %d, want %d once", asked, testMemory)
	}
	if active, err := second.IsActive(t.Context()); err != nil || !active {
		t.Errorf("the other idle machine: active %t, %v", active, err)
	}
}

// A machine that a job takes needs a slot, and no more memory.
func TestTakenMachineNeedsASlot(t *testing.T) {
	h := virttest.OpenEmpty(t)
	startIdle(t, h, record.Record{Idle: true})
	running := startIdle(t, h, record.Record{Job: "1", Machine: "sardine-00000000-1"})
	dir := t.TempDir()
	policy := Policy{Slots: 2, Reserve: roomFor(t, h, 2), Timeout: time.Minute}
	release, err := policy.Admit(t.Context(), h, "sardine-00000000-2", testMemory, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	policy.Timeout = 50 * time.Millisecond
	if _, err := policy.Admit(t.Context(), h, "sardine-00000000-3", testMemory, dir); !errors.Is(err, ErrNoRoom) {
		t.Errorf("a third job with two slots: %v", err)
	}
	if err := running.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// An idle machine takes no room from anything, and does not wait.
func TestIdleMachineWaitsForNothing(t *testing.T) {
	h := virttest.OpenEmpty(t)
	startIdle(t, h, record.Record{Idle: true})
	dir := t.TempDir()
	policy := Policy{Idle: true, Reserve: roomFor(t, h, 2), Timeout: time.Minute}
	release, err := policy.Admit(t.Context(), h, idle.NewName(), testMemory, dir)
	if err != nil {
		t.Fatal(err)
	}
	// It is starting now, and libvirt does not know it yet.
	if _, err := policy.Admit(t.Context(), h, idle.NewName(), testMemory, dir); !errors.Is(err, ErrNoRoom) {
		t.Errorf("beside two idle machines: %v", err)
	}
	// A job counts neither of them.
	job := Policy{Slots: 1, Reserve: policy.Reserve, Timeout: time.Minute}
	taken, err := job.Admit(t.Context(), h, "sardine-00000000-1", 2*testMemory, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(taken(), release()); err != nil {
		t.Error(err)
	}
	// While a job waits, no idle machine starts, even if there is room for it.
	queue := flock.New(filepath.Join(dir, lockFile))
	if err := queue.Lock(); err != nil {
		t.Fatal(err)
	}
	defer queue.Close()
	policy.Reserve = 0
	if _, err := policy.Admit(t.Context(), h, idle.NewName(), 0, dir); !errors.Is(err, ErrNoRoom) {
		t.Errorf("while a job waits: %v", err)
	}
}
