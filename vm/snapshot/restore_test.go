package snapshot

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/vm/snapshot/savefile"
)

// A reader of the pipe gets everything and then the end of file, also if it opens the pipe late.
func TestFeed(t *testing.T) {
	for name, size := range map[string]int{"less than a pipe holds": 100, "more": 8 << 20} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "memory")
			pipe, err := makePipe(path)
			if err != nil {
				t.Fatal(err)
			}
			fed := make(chan error, 1)
			go func() {
				fed <- feed(t.Context(), pipe, &savefile.Head{XML: "<domain/>"}, strings.NewReader(strings.Repeat("m", size)))
			}()
			for began := time.Now(); pipeHolds(pipe) == 0; time.Sleep(time.Millisecond) {
				if time.Since(began) > time.Minute {
					t.Fatal("nothing comes into the pipe")
				}
			}
			reader, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer reader.Close()
			if _, err := savefile.Read(reader); err != nil {
				t.Fatal(err)
			}
			if rest, err := io.ReadAll(reader); len(rest) != size || err != nil {
				t.Errorf("read %d bytes of %d: %v", len(rest), size, err)
			}
			if err := <-fed; err != nil {
				t.Error(err)
			}
		})
	}
}

// A reader never blocks on open. feed does not wait for a reader that never opens the pipe, or
// that closes it.
func TestFeedWithoutReader(t *testing.T) {
	for name, read := range map[string]bool{"never comes": false, "leaves": true} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "memory")
			pipe, err := makePipe(path)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			fed := make(chan error, 1)
			go func() {
				fed <- feed(ctx, pipe, &savefile.Head{XML: "<domain/>"}, strings.NewReader(strings.Repeat("m", 8<<20)))
			}()
			if read {
				reader, err := os.Open(path)
				if err != nil {
					t.Fatal(err)
				}
				reader.Close()
			}
			cancel()
			select {
			case err := <-fed:
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("got %v", err)
				}
			case <-time.After(time.Minute):
				t.Fatal("it waits")
			}
		})
	}
}
