package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"gitlab-sardine-executor/oci/space"
)

// An OngoingPull is a pull that a process works on at this moment.
type OngoingPull struct {
	// Digest of the manifest.
	Digest digest.Digest
	// Source is the registry, or "an OCI layout"; empty in the first second.
	Source string
	// Received and Total are bytes of blobs. Total is 0 while it is not known.
	Received, Total int64
	// Since is when unpacking began; zero before.
	Since time.Time
	// Usage is the space that the pull takes so far, and Needed the space that it announced,
	// both in bytes.
	Usage, Needed int64
}

// Ongoing lists the pulls in progress, sorted by digest. It changes nothing.
func (s *Store) Ongoing() ([]OngoingPull, error) {
	entries, err := os.ReadDir(filepath.Join(s.root, locksDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("listing pulls: %w", err)
	}
	var pulls []OngoingPull
	for _, entry := range entries {
		k, rest, ok := parseKey(entry.Name())
		if !ok || rest == "" || !isLocked(filepath.Join(s.root, locksDir, entry.Name())) {
			continue
		}
		var state turnState
		s.readTurn(entry.Name(), &state)
		dir := s.partialDir(entry.Name())
		announced, _ := space.Announced(dir) // zero before the pull unpacks
		pulls = append(pulls, OngoingPull{
			Digest: k.digest, Source: state.Source, Received: state.Received, Total: state.Total,
			Since: announced.Since, Needed: announced.Needed, Usage: space.Allocated(dir),
		})
	}
	return pulls, nil
}

// isLocked reports whether a process has an exclusive lock of a file. It takes a shared lock
// for a moment; those who poll the lock meanwhile try again.
func isLocked(path string) bool {
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	return errors.Is(unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}
