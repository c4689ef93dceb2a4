package unpack

import (
	"errors"
	"fmt"
	"path/filepath"
	"syscall"

	"github.com/docker/go-units"

	"gitlab-sardine-executor/oci/space"
)

// freeBefore is the space at the beginning of a pull.
type freeBefore struct {
	free int64 // bytes; -1 if unknown
	held int64 // bytes used by an interrupted pull
}

// checkFreeSpace refuses an image that cannot fit, before the transfer. It assumes that disks
// take at least their compressed size.
func (u *unpacker) checkFreeSpace() error {
	u.space = freeBefore{free: -1, held: space.Allocated(u.dir)}
	now, err := u.room.Ask(u.dir)
	if err != nil {
		return nil // try without
	}
	u.space.free = now.Free
	reserve := u.room.Reserve.Of(now.Total)
	var needed int64
	if !u.stored.has(u.plan) { // otherwise parts of it are stored already
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

// diskFull adds to an ENOSPC how much space was needed and how much was free.
func (u *unpacker) diskFull(err error) error {
	var reserved *space.ReserveError
	if errors.As(err, &reserved) || !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return err
	}
	needed := u.plan.UnpackedSize()
	if needed == 0 {
		// Extrapolate from the bytes received so far.
		written, received := space.Allocated(u.dir)-u.space.held, max(u.received.Load(), 1)
		needed = int64(float64(written) * float64(u.plan.TransferSize()) / float64(received))
	}
	return u.full(max(needed, u.plan.TransferSize(), u.space.free+1), err)
}

func (u *unpacker) full(needed int64, err error) error {
	return fmt.Errorf("disk full: the image needs about %s in %s, %s were free: %w",
		units.BytesSize(float64(needed)), filepath.Dir(u.dir), units.BytesSize(float64(max(u.space.free, 0))), err)
}
