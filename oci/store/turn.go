package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/docker/go-units"
	"github.com/gofrs/flock"
	"github.com/opencontainers/go-digest"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/registry/distribution"
	"gitlab-sardine-executor/oci/space"
)

// Of the processes that want one image from one place, one pulls it and the others wait. Each
// place, which is a repository of a registry or a layout, has a pull of its own: a registry
// that was chosen by one job must not keep the image from the jobs of another.
//
// A pull that is slower than [distribution.MinRate] loses its privilege. Those who wait for it go on to the next turn,
// where again one of them pulls, into a directory of its own. The first pull that is complete
// is renamed to its final name, and ends all others.

const (
	// maxBeat is the time between two notes of a pull on how far it is.
	maxBeat = time.Second
	// waitingInterval is the time between two lines about a pull that is waited for.
	waitingInterval = 30 * time.Second
)

// A pullSource is where an image comes from.
type pullSource struct {
	id   string // a file name for registry and repository, or for a layout
	name string // for people: the registry, for the repository may be another project's
}

func sourceOf(ref oci.Reference) pullSource {
	place, name := ref.Repository(), ref.Registry()
	if ref.IsLayout() {
		place, name = "oci:"+ref.LayoutDir(), "an OCI layout"
	}
	return pullSource{digest.FromString(place).Encoded()[:16], name}
}

// turnName is the name of a turn's lock, and the last part of the name of its directory.
func turnName(k key, source pullSource, n int) string {
	return fmt.Sprintf("%s.%s.%d", k, source.id, n)
}

// A turnState is what a process that pulls notes in its lock file, for those who wait.
type turnState struct {
	Received int64 `json:"received"` // bytes of blobs
	Total    int64 `json:"total"`    // bytes to be received; 0 if not known yet
	// Local is true while no answer of the registry is awaited: hashing, syncing. Then Beat,
	// which counts the notes, shows that the process goes on.
	Local bool  `json:"local"`
	Beat  int64 `json:"beat"`
}

// A want is an image that is to be pulled by one of those who want it.
type want struct {
	key      key
	source   pullSource
	stall    time.Duration // without progress, after which a pull is not waited for any more
	progress oci.Progress
	// pull makes the image in a directory, where an interrupted pull may have left something.
	pull func(ctx context.Context, m *meter, dir string) (*oci.Image, error)
}

// obtain returns the image, held. If the store does not hold it, this process pulls it or waits
// for another that does.
func (s *Store) obtain(ctx context.Context, w want, plan *format.Plan) (*oci.Image, error) {
	for {
		image, err := s.hold(ctx, w.key)
		if errors.Is(err, oci.ErrNotFound) {
			image, err = s.holdOlder(ctx, w.key, plan)
		}
		if err == nil || !errors.Is(err, oci.ErrNotFound) {
			return image, err
		}
		if s.unwritable != nil {
			return nil, fmt.Errorf("the store %s cannot be written: %w", s.root, s.unwritable)
		}
		if err := s.takeTurns(ctx, w); err != nil {
			return nil, err
		}
	}
}

// takeTurns returns once the image was published, by this process or another.
func (s *Store) takeTurns(ctx context.Context, w want) error {
	for n := 0; ; n++ {
		name := turnName(w.key, w.source, n)
		lock, stalled, err := s.awaitTurn(ctx, w, name)
		switch {
		case err != nil:
			return fmt.Errorf("waiting for image %s in the store %s: %w", w.key.digest, s.root, err)
		case stalled:
			continue
		case lock == nil:
			return nil
		}
		return errors.Join(s.pullInTurn(ctx, w, name), dropLock(lock))
	}
}

// awaitTurn waits until the turn is this process's, and returns its lock; or until the image was
// published, and returns nil; or until the pull of the process that has the turn has stalled.
func (s *Store) awaitTurn(ctx context.Context, w want, name string) (_ *flock.Flock, stalled bool, err error) {
	watch := stallWatch{stall: w.stall}
	var state turnState
	began, told := time.Now(), time.Time{}
	for {
		lock, err := s.tryLock(name, false)
		if err != nil {
			return nil, false, err
		}
		if s.has(w.key) {
			if lock != nil {
				err = dropLock(lock)
			}
			return nil, false, err
		}
		if lock != nil {
			return lock, false, nil
		}
		s.readTurn(name, &state)
		now := time.Now()
		if watch.stalled(state, now) {
			w.progress.Waiting(fmt.Sprintf("no longer, because the other pull from %s has made no progress for %s", w.source.name, w.stall))
			return nil, true, nil
		}
		// The first line waits for the other process to know how much there is to do.
		if now.Sub(told) >= waitingInterval && (state.Total > 0 || now.Sub(began) > 2*maxBeat) {
			told = now
			w.progress.Waiting(fmt.Sprintf("another process pulls the same image (%s) from %s%s", w.key.digest, w.source.name, state.text()))
		}
		if err := pause(ctx); err != nil {
			return nil, false, err
		}
	}
}

// text tells people how far a pull is.
func (t turnState) text() string {
	if t.Total == 0 {
		return ""
	}
	return fmt.Sprintf(": %s of %s", units.BytesSize(float64(min(t.Received, t.Total))), units.BytesSize(float64(t.Total)))
}

// A stallWatch tells whether a pull makes progress worth the name.
type stallWatch struct {
	stall    time.Duration
	since    time.Time // of the last progress
	received int64     // then
	beat     int64
}

func (w *stallWatch) stalled(state turnState, now time.Time) bool {
	moved := state.Received - w.received
	enough := max(1, int64(distribution.MinRate*w.stall.Seconds()))
	switch {
	case w.since.IsZero(), moved < 0, moved >= enough, state.Local && state.Beat != w.beat:
		w.since, w.received, w.beat = now, state.Received, state.Beat
	}
	return now.Sub(w.since) > w.stall
}

// readTurn reads what the process that pulls has noted. The state stays as it is if there is
// nothing, or only half of it.
func (s *Store) readTurn(name string, state *turnState) {
	var noted turnState
	raw, err := os.ReadFile(filepath.Join(s.root, locksDir, name))
	if err == nil && json.Unmarshal(raw, &noted) == nil {
		*state = noted
	}
}

// errPublished ends a pull of an image that another process has published.
var errPublished = errors.New("another process has pulled the image")

// pullInTurn pulls the image and publishes it. Our caller has the turn's lock.
func (s *Store) pullInTurn(ctx context.Context, w want, name string) error {
	if s.has(w.key) {
		return nil // published between a look at the store and the lock
	}
	dir := s.partialDir(name)
	m := &meter{Progress: w.progress, known: make(chan struct{}, 1)}
	pulling, cancel := context.WithCancelCause(ctx)
	noted := make(chan struct{})
	go func() {
		defer close(noted)
		s.noteTurn(pulling, w, name, m, cancel)
	}()
	image, err := w.pull(pulling, m, dir)
	if err == nil {
		err = s.publish(image, w.key, dir)
	}
	overtaken := errors.Is(context.Cause(pulling), errPublished)
	cancel(nil)
	<-noted
	switch {
	case overtaken && s.has(w.key):
		return os.RemoveAll(dir)
	case err != nil && !isResumable(err):
		return errors.Join(err, os.RemoveAll(dir))
	case err == nil:
		s.dropPartials(w.key)
	}
	return err
}

// noteTurn notes how far the pull is until its context ends, and ends it as soon as another
// has published the image.
func (s *Store) noteTurn(ctx context.Context, w want, name string, m *meter, cancel context.CancelCauseFunc) {
	ticker := time.NewTicker(min(maxBeat, w.stall/4+1))
	defer ticker.Stop()
	path := filepath.Join(s.root, locksDir, name)
	for beat := int64(1); ; beat++ {
		// Written in place, for the file is the lock.
		raw, _ := json.Marshal(m.state(beat)) // numbers alone
		_ = os.WriteFile(path, raw, 0o644)    // without notes, those who wait pull themselves
		if s.has(w.key) {
			cancel(errPublished)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-m.known:
		}
	}
}

// dropPartials removes what other pulls of the image left, now that it is there. Those under
// way end by themselves.
func (s *Store) dropPartials(k key) {
	older := key{digest: k.digest}
	dirs, _ := filepath.Glob(s.partialDir(k.String() + ".*")) // a root with a pattern: prune removes them
	for _, dir := range append(dirs, s.partialDir(older.String())) {
		name := filepath.Base(dir)[len(space.PartialPrefix):]
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		lock, err := s.tryLock(name, false)
		if err != nil || lock == nil {
			continue
		}
		_ = os.RemoveAll(dir) // else prune does
		_ = dropLock(lock)
	}
}
