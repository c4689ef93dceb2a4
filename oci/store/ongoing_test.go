package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gitlab-sardine-executor/oci/internal/ocitest"
)

// TestOngoing: a pull is listed while a process works on it, with its progress, and not when
// it was interrupted.
func TestOngoing(t *testing.T) {
	t.Parallel()
	registry := ocitest.NewPlainRegistry(t)
	ocitest.TrustInsecure(t, registry.Host)
	content := ocitest.Noise(100_000)
	m, layer := ocitest.ContainerDisk(t, content, registry)
	reached := holdLayer(t, registry, layer.Digest, false)
	s := newStore(t)
	if pulls, err := s.Ongoing(); err != nil || len(pulls) != 0 {
		t.Fatalf("an empty store has pulls: %v, %v", pulls, err)
	}
	p := startPull(t, s, ocitest.MustParse(t, registry.Host+"/group/x@"+m.Digest.String()), PullOptions{})
	<-reached
	var seen OngoingPull
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		pulls, err := s.Ongoing()
		if err != nil || len(pulls) > 1 {
			t.Fatalf("%d pulls, %v", len(pulls), err)
		}
		if len(pulls) == 1 && pulls[0].Received > 0 {
			seen = pulls[0]
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("got %+v", pulls)
		}
	}
	if seen.Digest != m.Digest || seen.Source != registry.Host || seen.Total < layer.Size || seen.Received > seen.Total || seen.Since.IsZero() || seen.Needed == 0 {
		t.Errorf("got %+v of a layer of %d bytes", seen, layer.Size)
	}
	p.cancel()
	if err := p.wait(t); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	// A process that was killed leaves the state behind.
	left := filepath.Join(s.root, locksDir, turnName(key{m.Digest, "0123456789abcdef0123456789abcdef"}, pullSource{id: "0123456789abcdef"}, 0))
	if err := os.WriteFile(left, []byte(`{"received":1,"total":2}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if pulls, err := s.Ongoing(); err != nil || len(pulls) != 0 {
		t.Errorf("interrupted pulls are listed: %+v, %v", pulls, err)
	}
	if _, err := os.Stat(left); err != nil {
		t.Error(err)
	}
}
