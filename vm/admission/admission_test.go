package admission

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt"
	"gitlab-sardine-executor/vm/virt/virttest"
)

// The memory of all machines that run, whoever's they are, of the new one and of the
// host itself is not more than the host has: a machine for which there is none waits
// until another ends.
func TestAdmissionByMemory(t *testing.T) {
	const mib = 1 << 20
	const newcomer = 1 << 30
	for _, test := range []struct {
		name    string
		reserve int64 // more than what is left to the host by two machines of 1 GiB
		foreign bool
		ends    bool // the machine that runs, after a while
		waits   string
		err     error
	}{
		{name: "fits exactly"},
		{name: "a byte too little", reserve: 1, ends: true, waits: "job 42 of group/project"},
		{name: "of another's machine", reserve: 1, foreign: true, ends: true, waits: "none of a job"},
		{name: "for ever", reserve: 1, waits: "job 42 of group/project", err: ErrQueue},
		{name: "memory is not counted", reserve: -4 << 30},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := virttest.OpenEmpty(t)
			running := startTestMachine(t, h, test.foreign)
			size, err := h.Size(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			said := make(chan string, 10)
			policy, dir := Policy{
				Reserve: int64(size.Memory) - 2048*mib + test.reserve,
				Timeout: 3 * time.Second,
				Waiting: func(reason string) { said <- reason },
			}, t.TempDir()
			if test.ends {
				policy.Timeout = time.Minute
				go func() {
					said <- <-said // that it waits is known
					if err := running.Destroy(context.Background()); err != nil {
						t.Error(err)
					}
				}()
			}
			release, err := policy.Admit(t.Context(), h, newcomer, dir)
			if !errors.Is(err, test.err) {
				t.Fatalf("got %v, want %v", err, test.err)
			}
			if err != nil && !strings.Contains(err.Error(), "queue_timeout") {
				t.Errorf("the error does not name the setting: %v", err)
			}
			if err == nil {
				if err := release(); err != nil {
					t.Error(err)
				}
			}
			if len(said) > 1 || (len(said) == 1) != (test.waits != "") {
				t.Fatalf("it said %d times that it waits", len(said))
			}
			if test.waits != "" {
				if reason := <-said; !strings.Contains(reason, test.waits) || !strings.Contains(reason, "1GiB of memory are needed") {
					t.Errorf("it waits for %q, want …%s…", reason, test.waits)
				}
			}
		})
	}
}

// Two machines that come at once do not both get the room of one.
func TestAdmissionIsOneByOne(t *testing.T) {
	h := virttest.OpenEmpty(t)
	const newcomer = 1 << 30
	policy, dir := Policy{Slots: 1, Reserve: -1, Timeout: time.Second}, t.TempDir()
	release, err := policy.Admit(t.Context(), h, newcomer, dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := policy.Admit(t.Context(), h, newcomer, dir); err == nil {
		t.Error("two were admitted at once")
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	release, err = policy.Admit(t.Context(), h, newcomer, dir)
	if err != nil {
		t.Fatal(err)
	}
	release()
}

// A machine that needs all of the room gets it, however many small ones that would
// fit come after it.
func TestAdmissionIsFair(t *testing.T) {
	h := virttest.OpenEmpty(t)
	size, err := h.Size(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	policy := Policy{Reserve: int64(size.Memory) - 1<<30, Timeout: time.Minute}
	start := func(name string, mib uint64) {
		release, err := policy.Admit(t.Context(), h, mib<<20, dir)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		defer release()
		dom, err := h.Start(t.Context(), name, fmt.Sprintf(
			"<domain type='test'><name>%s</name><memory unit='MiB'>%d</memory><os><type>hvm</type></os></domain>", name, mib))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		time.AfterFunc(200*time.Millisecond, func() { dom.Destroy(context.Background()) })
	}
	start("first", 512)
	var large, small sync.WaitGroup
	var done atomic.Bool
	large.Go(func() { start("large", 1024); done.Store(true) })
	time.Sleep(100 * time.Millisecond) // the first still runs
	later := 0
	small.Go(func() {
		for ; !done.Load() && later < 50; later++ {
			start(fmt.Sprintf("small-%d", later), 256)
			time.Sleep(50 * time.Millisecond)
		}
	})
	large.Wait()
	small.Wait()
	if later > 1 { // which waited meanwhile
		t.Errorf("%d machines that came later were first", later-1)
	}
}

// A machine whose turn comes while it looks at the host, or says why it waits, which
// can take seconds on a busy one, has its turn all the same.
func TestTurnIsNotMissed(t *testing.T) {
	h := virttest.OpenEmpty(t)
	dir := t.TempDir()
	admit := func(a Policy) (func() error, error) {
		a.Slots, a.Reserve = 1, -1
		return a.Admit(t.Context(), h, 0, dir)
	}
	leave, err := admit(Policy{Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	waits, goOn := make(chan bool), make(chan bool)
	var first sync.WaitGroup
	first.Go(func() {
		release, err := admit(Policy{Timeout: time.Minute, Waiting: func(string) { close(waits); <-goOn }})
		if err != nil {
			t.Error(err)
			return
		}
		release()
	})
	<-waits
	leave()
	time.Sleep(100 * time.Millisecond) // the kernel wakes who waits
	if release, err := admit(Policy{Timeout: 500 * time.Millisecond}); !errors.Is(err, ErrQueue) {
		t.Errorf("a machine that came later: %v, want %v", err, ErrQueue)
		if err == nil {
			release()
		}
	}
	close(goOn)
	first.Wait()
}

// startTestMachine starts a machine of 1 GiB: a job's, or somebody else's.
func startTestMachine(t *testing.T, h *virt.Host, foreign bool) *virt.Domain {
	t.Helper()
	metadata := ""
	if !foreign {
		record, err := record.Record{Job: "42", Project: "group/project", Expires: time.Now().Add(time.Hour)}.Metadata()
		if err != nil {
			t.Fatal(err)
		}
		metadata = "<metadata>" + record.XML + "</metadata>"
	}
	dom, err := h.Start(t.Context(), "sardine-0-1", fmt.Sprintf(
		"<domain type='test'><name>sardine-0-1</name>%s<memory unit='MiB'>1024</memory><os><type>hvm</type></os></domain>", metadata))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dom.Free() })
	return dom
}
