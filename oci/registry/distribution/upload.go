package distribution

import (
	"errors"
	"io"
	"io/fs"
	"sync"
)

// An upload is the content of a blob on its way to a registry. net/http may read
// from it for a moment after a request has failed; Close ends that.
type upload struct {
	meter *meter
	sent  func() // called at the end of the content

	once    sync.Once
	mu      sync.Mutex
	content io.Reader // nil once closed
	err     error     // why the content could not be read
}

func (u *upload) Read(p []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.content == nil {
		return 0, fs.ErrClosed
	}
	n, err := u.content.Read(p)
	u.meter.add(int64(n))
	switch {
	case errors.Is(err, io.EOF):
		u.once.Do(u.sent)
	case err != nil:
		u.err = err
	}
	return n, err
}

func (u *upload) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.content = nil
	return nil
}

// reason is why an upload failed: the content, if that is to blame.
func (u *upload) reason(err error) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.err != nil {
		return u.err
	}
	return err
}
