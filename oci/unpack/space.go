package unpack

import (
	"errors"
	"fmt"
	"path/filepath"
	"syscall"

	"github.com/docker/go-units"

	"gitlab-sardine-executor/oci/space"
)

// freeBefore is the room that there was when a pull began.
type freeBefore struct {
	free int64 // bytes; -1 if the file system does not say
	held int64 // bytes, by what an interrupted pull left
}

// checkFreeSpace refuses an image that cannot fit before anything is transferred. A
// decompressed disk takes at least the space of its compressed form, or nearly so.
func (u *unpacker) checkFreeSpace() error {
	u.space = freeBefore{free: -1, held: space.Allocated(u.dir)}
	now, err := u.room.Ask(u.dir)
	if err != nil {
		return nil // then we shall see
	}
	u.space.free = now.Free
	reserve := u.room.Reserve.Of(now.Total)
	var needed int64
	if !u.stored.has(u.plan) { // else parts of it need not be stored again
		needed = max(0, u.plan.TransferSize()-u.space.held)
	}
	if needed > now.Free {
		return u.full(needed, syscall.ENOSPC)
	}
	others := u.announced.Earlier()
	if reserve > 0 && needed+others > now.Free-reserve {
		return &space.ReserveError{Dir: filepath.Dir(u.dir), Reserve: reserve, Free: now.Free, Needed: needed, Others: others}
	}
	return nil
}

// diskFull says how much room was needed, and how much there was.
func (u *unpacker) diskFull(err error) error {
	var reserved *space.ReserveError
	if errors.As(err, &reserved) || !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return err
	}
	needed := u.plan.UnpackedSize()
	if needed == 0 {
		// By what has come so far.
		written, received := space.Allocated(u.dir)-u.space.held, max(u.received.Load(), 1)
		needed = int64(float64(written) * float64(u.plan.TransferSize()) / float64(received))
	}
	return u.full(max(needed, u.plan.TransferSize(), u.space.free+1), err)
}

func (u *unpacker) full(needed int64, err error) error {
	return fmt.Errorf("disk full: the image needs about %s in %s, %s were free: %w",
		units.BytesSize(float64(needed)), filepath.Dir(u.dir), units.BytesSize(float64(max(u.space.free, 0))), err)
}
