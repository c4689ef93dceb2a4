package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/internal/ocitest"
	"gitlab-sardine-executor/oci/space"
)

// TestPullProcess is no test: it is the process that other tests start to pull.
func TestPullProcess(t *testing.T) {
	ref := os.Getenv("OCI_TEST_PULL")
	if ref == "" {
		return
	}
	os.Setenv("CONTAINERS_REGISTRIES_CONF", os.Getenv("OCI_TEST_CONF"))
	store, err := Open(os.Getenv("OCI_TEST_STORE"))
	if err != nil {
		t.Fatal(err)
	}
	told := waitingFunc(func() { fmt.Println("waiting") })
	image, err := store.Pull(t.Context(), ocitest.MustParse(t, ref), PullOptions{Progress: told, retries: fastRetries})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("pulled", image.Digest)
}

func pullProcess(t *testing.T, store *Store, ref oci.Reference) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestPullProcess$", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), "OCI_TEST_PULL="+ref.String(), "OCI_TEST_STORE="+store.Root(),
		"OCI_TEST_CONF="+os.Getenv("CONTAINERS_REGISTRIES_CONF"))
	return cmd
}

// TestPullResumes kills a process in the middle of a pull. What it had finished
// is not transferred again.
func TestPullResumes(t *testing.T) {
	t.Parallel()
	text := ocitest.Compressible(12 << 20)
	tests := map[string]struct {
		push func(t *testing.T, host string) oci.Reference
		// held is how many blobs get through before the pull stands still.
		blobs, held int
	}{
		"pieces of a gzip stream": {func(t *testing.T, host string) oci.Reference { return pushRaw(t, host, text, 512<<10) }, 12, 8},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			f := ocitest.NewFaultyRegistry(t)
			ref := test.push(t, f.Host)
			store := newStore(t)
			reached := holdAfter(f, test.held)
			cmd := pullProcess(t, store, ref)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			select {
			case <-reached:
			case <-time.After(time.Minute):
				t.Error("the pull did not get that far")
			}
			waitForPartial(t, store, func(partial string) bool {
				var state struct {
					Mark struct{ Compressed int64 }
				}
				raw, err := os.ReadFile(filepath.Join(partial, ".disk-0.json"))
				return err == nil && json.Unmarshal(raw, &state) == nil && state.Mark.Compressed >= 4*512<<10
			})
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // it was killed

			f.Fail(nil)
			image, err := store.Pull(t.Context(), ref, PullOptions{retries: fastRetries})
			if err != nil {
				t.Fatal(err)
			}
			ocitest.CheckContent(t, image, text)
			twice := 0
			for _, n := range f.Gets {
				if n > 1 {
					twice++
				}
			}
			// Config, domain, the blob in flight and those whose decompression was behind.
			if twice > 6 {
				t.Errorf("%d of %d blobs were transferred twice", twice, len(f.Gets))
			}
			left, _ := filepath.Glob(filepath.Join(store.Root(), imagesDir, "*", ".*"))
			if len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// holdAfter lets n requests for blobs through and holds the others; reached is
// closed with the first of those.
func holdAfter(f *ocitest.FaultyRegistry, n int) (reached chan struct{}) {
	reached = make(chan struct{})
	var once sync.Once
	var mu sync.Mutex
	f.Fail(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		mu.Lock()
		n--
		held := n < 0
		mu.Unlock()
		if held {
			once.Do(func() { close(reached) })
			<-r.Context().Done()
		}
		return held
	})
	return reached
}

// waitForPartial waits until a pull has got far enough.
func waitForPartial(t *testing.T, store *Store, enough func(partial string) bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		partial, _ := filepath.Glob(filepath.Join(store.Root(), imagesDir, space.PartialPrefix+"*"))
		if len(partial) == 1 && enough(partial[0]) {
			return
		}
	}
	t.Error("the pull did not get that far")
}

// TestPullDistrustsPartial damages what an interrupted pull left.
func TestPullDistrustsPartial(t *testing.T) {
	t.Parallel()
	f := ocitest.NewFaultyRegistry(t)
	text := ocitest.Compressible(4 << 20)
	ref := pushRaw(t, f.Host, text, 160<<10)
	for name, damage := range map[string]func(path string) error{
		"disk":       func(path string) error { return overwrite(path, 100_000, []byte("x")) },
		"disk gone":  os.Remove,
		"disk empty": func(path string) error { return os.Truncate(path, 0) },
		"state":      func(path string) error { return overwrite(path+".json", 20, []byte("12")) },
		"state gone": func(path string) error { return os.Remove(path + ".json") },
		"none":       func(string) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			store := newStore(t)
			var blobs int
			f.Fail(func(w http.ResponseWriter, r *http.Request) bool {
				if strings.Contains(r.URL.Path, "/blobs/") {
					if blobs++; blobs > 8 {
						w.WriteHeader(http.StatusTeapot)
						return true
					}
				}
				return false
			})
			if _, err := store.Pull(t.Context(), ref, PullOptions{retries: fastRetries}); err == nil || oci.IsPermanent(err) {
				t.Fatalf("the first pull: %v", err)
			}
			partial, err := filepath.Glob(filepath.Join(store.Root(), imagesDir, space.PartialPrefix+"*"))
			if err != nil || len(partial) != 1 {
				t.Fatal(partial, err)
			}
			if err := damage(filepath.Join(partial[0], ".disk-0")); err != nil {
				t.Fatal(err)
			}
			f.Fail(nil)
			image, err := store.Pull(t.Context(), ref, PullOptions{retries: fastRetries})
			if err != nil {
				t.Fatal(err)
			}
			ocitest.CheckContent(t, image, text)
		})
	}
}

func overwrite(path string, at int64, with []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(with, at)
	return errors.Join(err, f.Close())
}

// TestPullProcesses lets ten processes pull one image at the same time.
func TestPullProcesses(t *testing.T) {
	t.Parallel()
	f := ocitest.NewFaultyRegistry(t)
	content := ocitest.Noise(4 << 20)
	ref := pushRaw(t, f.Host, content, 0)
	store := newStore(t)
	// Slow enough for all to meet.
	f.Fail(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			time.Sleep(500 * time.Millisecond)
		}
		return false
	})
	var group sync.WaitGroup
	var mu sync.Mutex
	waited := 0
	for range 10 {
		group.Go(func() {
			out, err := pullProcess(t, store, ref).CombinedOutput()
			mu.Lock()
			defer mu.Unlock()
			if err != nil || !bytes.Contains(out, []byte("pulled sha256:")) {
				t.Errorf("%v\n%s", err, out)
			}
			if bytes.Contains(out, []byte("waiting\n")) {
				waited++
			}
		})
	}
	group.Wait()
	if waited == 0 {
		t.Error("nobody said that it waits")
	}
	// Each reads the config, by which the store knows the image; the rest is sent once.
	config := configOf(t, ref)
	for blob, n := range f.Gets {
		if n != 1 && blob != config {
			t.Errorf("%s, which is not the config, was sent %d times", blob, n)
		}
	}
	if f.Gets[config] != 10 {
		t.Errorf("the config was read %d times, want once for each of ten", f.Gets[config])
	}
}

// configOf asks the registry for the digest of an image's config.
func configOf(t *testing.T, ref oci.Reference) string {
	t.Helper()
	host, rest, _ := strings.Cut(ref.String(), "/")
	name, tag, _ := strings.Cut(rest, ":")
	response, err := http.Get("http://" + host + "/v2/" + name + "/manifests/" + tag)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var manifest struct{ Config struct{ Digest string } }
	if err := json.NewDecoder(response.Body).Decode(&manifest); err != nil || manifest.Config.Digest == "" {
		t.Fatalf("the manifest of %s: %s, %v", ref, response.Status, err)
	}
	return manifest.Config.Digest
}

// TestHold: an image that was pulled cannot be removed before it is let go.
func TestHold(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	first, err := store.Pull(t.Context(), ocitest.FixtureRef(t, "single", "latest"), PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	second, err := store.Pull(t.Context(), ocitest.FixtureRef(t, "single", "latest"), PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, image := range []*oci.Image{first, second} {
		if lock, err := store.tryLock(first.Key(), false); lock != nil || err != nil {
			t.Errorf("free: %v, %v", lock, err)
		}
		if err := image.Close(); err != nil {
			t.Error(err)
		}
	}
	lock, err := store.tryLock(first.Key(), false)
	if lock == nil || err != nil {
		t.Fatalf("free: %v, %v", lock, err)
	}
	if err := lock.Close(); err != nil {
		t.Error(err)
	}
}

// TestPullDiskFull pulls into a small file system.
func TestPullDiskFull(t *testing.T) {
	t.Parallel()
	small := ocitest.Mounted(t, "tmpfs", "size=2m")
	tests := map[string][]byte{
		"seen at once":     ocitest.Noise(3 << 20),
		"seen on the way":  ocitest.Compressible(4 << 20),
		"of several parts": append(ocitest.Noise(3<<19), ocitest.Compressible(2<<20)...),
	}
	for name, content := range tests {
		t.Run(name, func(t *testing.T) {
			f := ocitest.NewFaultyRegistry(t)
			ref := pushRaw(t, f.Host, content, 0)
			store, err := Open(filepath.Join(small, strings.ReplaceAll(name, " ", "-")))
			if err != nil {
				t.Fatal(err)
			}
			_, err = store.Pull(t.Context(), ref, PullOptions{retries: fastRetries})
			if !errors.Is(err, syscall.ENOSPC) || oci.IsPermanent(err) {
				t.Fatalf("got %v, want that the disk is full", err)
			}
			if name == "seen at once" && f.Sent.Load() > 100_000 {
				t.Errorf("%d bytes were transferred in vain", f.Sent.Load())
			}
			var need, free string
			if _, scan := fmt.Sscanf(err.Error()[strings.Index(err.Error(), "needs about"):], "needs about %s in", &need); scan != nil || !strings.Contains(err.Error(), "were free") {
				t.Errorf("%v: %v; need %q, free %q", err, scan, need, free)
			}
			ocitest.AssertEmpty(t, filepath.Join(store.Root(), imagesDir))
		})
	}
}

// TestPullReadOnly: what a store holds can be used though it cannot be written.
func TestPullReadOnly(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	pulled, err := store.Pull(t.Context(), ocitest.FixtureRef(t, "single", "latest"), PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := pulled.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"with its locks", "without locks"} {
		t.Run(name, func(t *testing.T) {
			if name == "without locks" {
				if err := os.RemoveAll(filepath.Join(store.Root(), locksDir)); err != nil {
					t.Fatal(err)
				}
			}
			readOnly := ocitest.Mounted(t, store.Root(), "ro")
			opened, err := Open(readOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, policy := range []oci.PullPolicy{oci.PullAlways, oci.PullIfNotPresent, oci.PullNever} {
				image, err := opened.Pull(t.Context(), ocitest.FixtureRef(t, "single", "latest"), PullOptions{Policies: []oci.PullPolicy{policy}})
				if err != nil || image.Digest != pulled.Digest {
					t.Errorf("%s: %+v, %v", policy, image, err)
				}
			}
			_, err = opened.Pull(t.Context(), ocitest.FixtureRef(t, "chain", "latest"), PullOptions{})
			if !errors.Is(err, syscall.EROFS) || oci.IsPermanent(err) {
				t.Errorf("another image: %v, want that the store is read-only", err)
			}
		})
	}
}
