package admission

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gofrs/flock"

	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt"
	"gitlab-sardine-executor/vm/virt/virttest"
)

// The memory of all running machines, also of those that are not a job's, of the new one
// and the reserve fit into the host. A machine that does not fit waits until another ends.
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
		{name: "beside a machine of no job", reserve: 1, foreign: true, ends: true, waits: "none is a job's"},
		{name: "until the timeout", reserve: 1, waits: "job 42 of group/project", err: errNoRoom},
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

// Two machines that come at once do not both get the room of one: the second waits while
// the first starts, while the first runs, and no longer.
func TestAdmissionIsOneByOne(t *testing.T) {
	h := virttest.OpenEmpty(t)
	dir := t.TempDir()
	policy := Policy{Slots: 1, Reserve: -1, Timeout: time.Minute}
	release, err := policy.Admit(t.Context(), h, 0, dir)
	if err != nil {
		t.Fatal(err)
	}
	said, admitted := make(chan string, 10), make(chan error, 1)
	go func() {
		second := policy
		second.Waiting = func(reason string) { said <- reason }
		release, err := second.Admit(t.Context(), h, 0, dir)
		if err == nil {
			err = release()
		}
		admitted <- err
	}()
	await := func(want string) {
		t.Helper()
		for {
			select {
			case reason := <-said:
				if strings.Contains(reason, want) {
					return
				}
			case err := <-admitted:
				t.Fatalf("a second machine was admitted (%v), and did not wait for %q", err, want)
			}
		}
	}
	await("") // whatever it calls a machine that starts
	first := startTestMachine(t, h, false)
	if err := release(); err != nil {
		t.Fatal(err)
	}
	await("1 of 1 machines are running")
	if err := first.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-admitted; err != nil {
		t.Error(err)
	}
}

// A machine that needs all the room gets it before small ones that come later and would fit.
func TestAdmissionIsFair(t *testing.T) {
	h := virttest.OpenEmpty(t)
	size, err := h.Size(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// Room for one machine of 1 GiB, or several small ones.
	policy := Policy{Reserve: int64(size.Memory) - 1<<30, Timeout: time.Minute}
	// start returns the running machine. It calls waits, if it has to wait.
	start := func(name string, mib uint64, waits func()) *virt.Domain {
		policy := policy
		if waits != nil {
			once := sync.OnceFunc(waits)
			policy.Waiting = func(string) { once() }
		}
		release, err := policy.Admit(t.Context(), h, mib<<20, dir)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return nil
		}
		defer release()
		dom, err := h.Start(t.Context(), name, fmt.Sprintf(
			"<domain type='test'><name>%s</name><memory unit='MiB'>%d</memory><os><type>hvm</type></os></domain>", name, mib))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return nil
		}
		return dom
	}
	var mu sync.Mutex
	var order []string
	var running sync.WaitGroup
	// later starts a machine, which ends at once, and returns when it waits.
	later := func(name string, mib uint64) {
		waits, started := make(chan struct{}), make(chan struct{})
		running.Go(func() {
			defer close(started)
			dom := start(name, mib, func() { close(waits) })
			if dom == nil {
				return
			}
			mu.Lock()
			order = append(order, name)
			mu.Unlock()
			dom.Destroy(context.Background())
		})
		select {
		case <-waits:
		case <-started:
		}
	}
	first := start("first", 512, nil)
	later("large", 1024)
	// There is room for these beside the first one.
	for n := range 5 {
		later(fmt.Sprintf("small-%d", n), 64)
	}
	first.Destroy(t.Context())
	running.Wait()
	if len(order) != 6 || order[0] != "large" {
		t.Errorf("machines started in the order %q, want large first", order)
	}
}

// A machine whose turn comes while it checks the host or reports why it waits, which can
// take seconds on a busy host, keeps its turn.
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
	waits, goOn, ended := make(chan bool), make(chan bool), make(chan bool)
	var first sync.WaitGroup
	first.Go(func() {
		defer close(ended)
		release, err := admit(Policy{Timeout: time.Minute, Waiting: func(string) { close(waits); <-goOn }})
		if err != nil {
			t.Error(err)
			return
		}
		release()
	})
	select {
	case <-waits:
	case <-ended:
		t.Fatal("a second machine did not wait for the first")
	}
	leave()
	// The kernel gives the lock to the machine that waits for it.
	for probe := flock.New(filepath.Join(dir, ".admission")); ; probe.Unlock() {
		if free, err := probe.TryLock(); err != nil {
			t.Fatal(err)
		} else if !free {
			break
		}
	}
	if release, err := admit(Policy{Timeout: 500 * time.Millisecond}); !errors.Is(err, errNoRoom) {
		t.Errorf("a machine that came later: %v, want %v", err, errNoRoom)
		if err == nil {
			release()
		}
	}
	close(goOn)
	first.Wait()
}

// startTestMachine starts a machine of 1 GiB, of a job or not.
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
