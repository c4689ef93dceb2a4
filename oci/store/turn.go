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

// If several processes pull the same image from the same place (a repository in a registry, or
// a layout), one pulls and the others wait. There is one pull for each place: a slow registry
// that one job chose must not delay the jobs of others.
//
// If a pull is slower than [distribution.MinRate], the waiting processes start the next turn,
// in which one of them pulls into another directory. The first pull that completes renames its
// directory to the final name, and ends the others.

const (
	// maxBeat is the interval at which a pull writes its progress.
	maxBeat = time.Second
	// waitingInterval is the interval of messages to waiting jobs.
	waitingInterval = 30 * time.Second
)

// A pullSource is the place of an image.
type pullSource struct {
	id   string // a file name for registry and repository, or for a layout
	name string // for people: only the registry, because the repository may belong to another project
}

func sourceOf(ref oci.Reference) pullSource {
	place, name := ref.Repository(), ref.Registry()
	if ref.IsLayout() {
		place, name = "oci:"+ref.LayoutDir(), "an OCI layout"
	} else if !ref.IsRegistry() {
		place, name = ref.String(), "this host"
	}
	return pullSource{digest.FromString(place).Encoded()[:16], name}
}

// turnName returns the name of a turn's lock, which is a part of the name of its directory.
func turnName(k key, source pullSource, n int) string {
	return fmt.Sprintf("%s.%s.%d", k, source.id, n)
}

// A turnState is the progress of a pull. It is stored in the lock file for waiting processes.
type turnState struct {
	Received int64 `json:"received"` // bytes of blobs
	Total    int64 `json:"total"`    // bytes of blobs; 0 if not known yet
	// Local is true while the pull does not wait for the registry: it hashes or syncs. Then
	// Beat, which counts the writes, shows that it makes progress.
	Local bool  `json:"local"`
	Beat  int64 `json:"beat"`
	// Source is the name of the source, for people; older versions do not write it.
	Source string `json:"source,omitempty"`
}

// A want is an image to pull or to wait for.
type want struct {
	key      key
	source   pullSource
	stall    time.Duration // time without progress after which to stop waiting for a pull
	progress oci.Progress
	// pull writes the image into a directory, which may have files of an interrupted pull.
	pull func(ctx context.Context, m *meter, dir string) (*oci.Image, error)
}

// obtain returns the locked image. If the store does not have it, it pulls the image or waits
// for a process that pulls it.
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

// takeTurns returns when this or another process has published the image.
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

// awaitTurn waits until this process gets the turn, and returns its lock; or until the image is
// published, and returns nil; or until the pull of this turn stalls.
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
		// Give the other process time to find out the total size.
		if now.Sub(told) >= waitingInterval && (state.Total > 0 || now.Sub(began) > 2*maxBeat) {
			told = now
			w.progress.Waiting(fmt.Sprintf("another process pulls the same image (%s) from %s%s", w.key.digest, w.source.name, state.text()))
		}
		if err := pause(ctx); err != nil {
			return nil, false, err
		}
	}
}

// text describes the progress for people.
func (t turnState) text() string {
	if t.Total == 0 {
		return ""
	}
	return fmt.Sprintf(": %s of %s", units.BytesSize(float64(min(t.Received, t.Total))), units.BytesSize(float64(t.Total)))
}

// A stallWatch detects stalled pulls.
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

// readTurn reads the state of a turn. It does not change state if the file is missing or
// incomplete.
func (s *Store) readTurn(name string, state *turnState) {
	var noted turnState
	raw, err := os.ReadFile(filepath.Join(s.root, locksDir, name))
	if err == nil && json.Unmarshal(raw, &noted) == nil {
		*state = noted
	}
}

// errPublished ends a pull when another process has published the image.
var errPublished = errors.New("another process has pulled the image")

// pullInTurn pulls and publishes the image. The caller has the turn's lock.
func (s *Store) pullInTurn(ctx context.Context, w want, name string) error {
	if s.has(w.key) {
		return nil // published before this process got the lock
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

// noteTurn writes the state of the pull until its context ends. It cancels the pull when
// another process has published the image.
func (s *Store) noteTurn(ctx context.Context, w want, name string, m *meter, cancel context.CancelCauseFunc) {
	ticker := time.NewTicker(min(maxBeat, w.stall/4+1))
	defer ticker.Stop()
	path := filepath.Join(s.root, locksDir, name)
	for beat := int64(1); ; beat++ {
		// Write in place: the file is the lock.
		state := m.state(beat)
		state.Source = w.source.name
		raw, _ := json.Marshal(state)      // only numbers and a string
		_ = os.WriteFile(path, raw, 0o644) // without a state, waiting processes start the next turn
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

// dropPartials removes the files of other pulls of the image, except for pulls in progress,
// which end by themselves.
func (s *Store) dropPartials(k key) {
	older := key{digest: k.digest}
	dirs, _ := filepath.Glob(s.partialDir(k.String() + ".*")) // fails for a root with meta characters; prune removes them
	for _, dir := range append(dirs, s.partialDir(older.String())) {
		name := filepath.Base(dir)[len(space.PartialPrefix):]
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		lock, err := s.tryLock(name, false)
		if err != nil || lock == nil {
			continue
		}
		_ = os.RemoveAll(dir) // otherwise prune does
		_ = dropLock(lock)
	}
}
