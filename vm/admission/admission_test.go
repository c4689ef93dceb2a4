package admission

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
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
	t.Parallel()
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
		{name: "a byte too little", reserve: 1, ends: true, waits: "running machines use 1GiB"},
		{name: "beside a machine of no job", reserve: 1, foreign: true, ends: true, waits: "running machines use 1GiB"},
		{name: "until the timeout", reserve: 1, waits: "running machines use 1GiB", err: ErrNoRoom},
		{name: "memory is not counted", reserve: -4 << 30},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := virttest.OpenEmpty(t)
			running := startTestMachine(t, h, test.foreign)
			size, err := h.Size(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			said := make(chan string, 10)
			policy, dir := Policy{
				Reserve: int64(size.Memory) - 2048*mib + test.reserve,
				Timeout: time.Minute,
				Waiting: func(reason string) { said <- reason },
			}, t.TempDir()
			if test.err != nil {
				policy.Timeout = 3 * pollInterval / 2
			}
			if test.ends {
				go func() {
					said <- <-said // that it waits is known
					if err := running.Destroy(context.Background()); err != nil {
						t.Error(err)
					}
				}()
			}
			release, err := policy.Admit(t.Context(), h, "newcomer", newcomer, dir)
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
				if reason := <-said; !strings.HasSuffix(reason, test.waits) || !strings.Contains(reason, "1GiB of memory are needed") {
					t.Errorf("it waits for %q, want …%s…", reason, test.waits)
				}
			}
		})
	}
}

// Two machines that come at once do not both get the room of one: the second waits while
// the first starts, while the first runs, and no longer.
func TestAdmissionIsOneByOne(t *testing.T) {
	t.Parallel()
	h := virttest.OpenEmpty(t)
	dir := t.TempDir()
	policy := Policy{Slots: 1, Reserve: -1, Timeout: time.Minute}
	release, err := policy.Admit(t.Context(), h, "sardine-0-1", 0, dir)
	if err != nil {
		t.Fatal(err)
	}
	said, admitted := make(chan string, 10), make(chan error, 1)
	go func() {
		second := policy
		second.Waiting = func(reason string) { said <- reason }
		release, err := second.Admit(t.Context(), h, "second", 0, dir)
		if err == nil {
			err = release()
		}
		admitted <- err
	}()
	await := func(want string) {
		t.Helper()
		select {
		case reason := <-said:
			if !strings.Contains(reason, want) {
				t.Errorf("it waits for %q, want …%s…", reason, want)
			}
		case err := <-admitted:
			t.Fatalf("a second machine was admitted (%v), and did not wait for %q", err, want)
		}
	}
	await("1 of 1 machines are running") // or starting
	first := startTestMachine(t, h, false)
	if err := release(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-admitted:
		t.Fatalf("a second machine was admitted beside one that runs: %v", err)
	case <-time.After(2 * pollInterval): // it looks again
	}
	if err := first.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-admitted; err != nil {
		t.Error(err)
	}
}

// No machine waits for another that merely starts, and none is told that it waits for room.
func TestStartsAreSideBySide(t *testing.T) {
	t.Parallel()
	h := virttest.OpenEmpty(t)
	dir := t.TempDir()
	policy := Policy{
		Slots: 8, Reserve: -1, Timeout: 10 * time.Second,
		Waiting: func(reason string) { t.Errorf("a machine waits: %s", reason) },
	}
	for n := range policy.Slots {
		name := fmt.Sprint("starts-", n)
		release, err := policy.Admit(t.Context(), h, name, 1<<20, dir)
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		if n%2 == 0 { // libvirt knows it, before the reservation is released
			startMachine(t, h, name, false)
		}
	}
	policy.Timeout, policy.Waiting = time.Second, nil
	if _, err := policy.Admit(t.Context(), h, "one-too-many", 0, dir); !errors.Is(err, ErrNoRoom) {
		t.Errorf("got %v, want %v", err, ErrNoRoom)
	}
}

// However machines come, start and end, there are never more than the policy allows.
func TestAdmissionIsExact(t *testing.T) {
	t.Parallel()
	const machines, slots = 12, 3
	h := virttest.OpenEmpty(t)
	size, err := h.Size(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, policy := range []Policy{
		{Slots: slots, Reserve: -1, Timeout: time.Minute},
		{Reserve: int64(size.Memory) - slots<<30, Timeout: time.Minute},
	} {
		var there, most atomic.Int64
		var all sync.WaitGroup
		for n := range machines {
			all.Go(func() {
				name := fmt.Sprint("sardine-0-", n)
				release, err := policy.Admit(t.Context(), h, name, 1<<30, dir)
				if err != nil {
					t.Error(err)
					return
				}
				now := there.Add(1)
				for seen := most.Load(); seen < now && !most.CompareAndSwap(seen, now); seen = most.Load() {
				}
				dom := startMachine(t, h, name, false)
				if err := release(); err != nil {
					t.Error(err)
				}
				there.Add(-1)
				if err := dom.Destroy(context.Background()); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if got := most.Load(); got > slots {
			t.Errorf("%d machines at once, want at most %d", got, slots)
		}
	}
}

// The room of a process that was killed is free at once.
func TestKilledStart(t *testing.T) {
	const dirVariable = "ADMISSION_TEST_DIR"
	policy := Policy{Slots: 1, Reserve: -1, Timeout: time.Minute}
	if dir := os.Getenv(dirVariable); dir != "" {
		if _, err := policy.Admit(t.Context(), virttest.OpenEmpty(t), "killed", 0, dir); err != nil {
			t.Fatal(err)
		}
		fmt.Println("admitted")
		io.Copy(io.Discard, os.Stdin) // until it is killed
		return
	}
	t.Parallel()
	h, dir := virttest.OpenEmpty(t), t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledStart$")
	cmd.Env = append(os.Environ(), dirVariable+"="+dir)
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	for lines.Scan() && lines.Text() != "admitted" {
		t.Log(lines.Text())
	}
	brief := policy
	brief.Timeout = time.Second
	if _, err := brief.Admit(t.Context(), h, "second", 0, dir); !errors.Is(err, ErrNoRoom) {
		t.Errorf("beside a machine that starts: %v, want %v", err, ErrNoRoom)
	}
	cmd.Process.Kill()
	cmd.Wait()
	release, err := brief.Admit(t.Context(), h, "second", 0, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(release(), release()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, reservationDir, "killed")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the reservation of the killed process: %v", err)
	}
}

// A machine that was released counts for those who asked libvirt before, and no more for
// those who ask later. Files of an earlier boot of the host do not count.
func TestReservationsSince(t *testing.T) {
	dir := reservations(filepath.Join(t.TempDir(), "new"))
	moment := func() uint64 {
		t.Helper()
		at, err := uptime()
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	r, err := dir.add("machine", 7)
	if err != nil {
		t.Fatal(err)
	}
	before := moment()
	if err := r.release(); err != nil {
		t.Fatal(err)
	}
	after := moment()
	for _, test := range []struct {
		at   uint64
		want int
	}{{before, 1}, {after, 0}} {
		if got, err := dir.since(test.at); err != nil || len(got) != test.want {
			t.Errorf("%d machines, %v, want %d", len(got), err, test.want)
		}
	}
	for name, text := range map[string]string{
		"earlier-boot": fmt.Sprintf(note, 7, uint64(1)<<62), "damaged": "seven", "empty": "", "long-ago": fmt.Sprintf(note, 7, 1),
	} {
		if err := os.WriteFile(filepath.Join(string(dir), name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := dir.clear(); err != nil {
		t.Fatal(err)
	}
	if got, err := dir.since(before); err != nil || len(got) != 1 || got["machine"] != 7 {
		t.Errorf("%v, %v", got, err)
	}
}

// A machine that needs all the room gets it before small ones that come later and would fit.
func TestAdmissionIsFair(t *testing.T) {
	t.Parallel()
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
		release, err := policy.Admit(t.Context(), h, name, mib<<20, dir)
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
	t.Parallel()
	h := virttest.OpenEmpty(t)
	dir := t.TempDir()
	admit := func(name string, a Policy) (func() error, error) {
		a.Slots, a.Reserve = 1, -1
		return a.Admit(t.Context(), h, name, 0, dir)
	}
	leave, err := admit("first", Policy{Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	// The second has its turn and no room. The third waits for its turn.
	waits := make(chan string)
	goOn := map[string]chan bool{"second": make(chan bool), "third": make(chan bool)}
	ended := map[string]chan bool{"second": make(chan bool), "third": make(chan bool)}
	for _, name := range []string{"second", "third"} {
		once := sync.OnceFunc(func() { waits <- name; <-goOn[name] })
		go func() {
			defer close(ended[name])
			release, err := admit(name, Policy{Timeout: time.Minute, Waiting: func(string) { once() }})
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			release()
		}()
		select {
		case <-waits:
		case <-ended[name]:
			t.Fatalf("the %s machine did not wait", name)
		}
	}
	leave()
	close(goOn["second"])
	<-ended["second"]
	// The kernel gives the lock to the third, which is still reporting.
	for probe := flock.New(filepath.Join(dir, lockFile)); ; probe.Unlock() {
		if free, err := probe.TryLock(); err != nil {
			t.Fatal(err)
		} else if !free {
			break
		}
	}
	if release, err := admit("fourth", Policy{Timeout: 500 * time.Millisecond}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a machine that came later: %v, want %v", err, context.DeadlineExceeded)
		if err == nil {
			release()
		}
	}
	close(goOn["third"])
	<-ended["third"]
}

// startTestMachine starts a machine of 1 GiB, of a job or not.
func startTestMachine(t *testing.T, h *virt.Host, foreign bool) *virt.Domain {
	t.Helper()
	return startMachine(t, h, "sardine-0-1", foreign)
}

func startMachine(t *testing.T, h *virt.Host, name string, foreign bool) *virt.Domain {
	t.Helper()
	metadata := ""
	if !foreign {
		record, err := record.Record{Job: "42", Project: "group/project", Expires: time.Now().Add(time.Hour)}.Metadata()
		if err != nil {
			t.Fatal(err)
		}
		metadata = "<metadata>" + record.XML + "</metadata>"
	}
	dom, err := h.Start(t.Context(), name, fmt.Sprintf(
		"<domain type='test'><name>%s</name>%s<memory unit='MiB'>1024</memory><os><type>hvm</type></os></domain>", name, metadata))
	if err != nil {
		t.Error(err)
		runtime.Goexit()
	}
	t.Cleanup(func() { dom.Free() })
	return dom
}
