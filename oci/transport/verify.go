package transport

import (
	// Digests of blobs may be SHA-512.
	_ "crypto/sha512"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci"
)

// Verify returns a reader of a blob that fails with [oci.ErrInvalid], instead of io.EOF, if
// the blob does not match its descriptor. It returns at most desc.Size bytes.
func Verify(blob io.Reader, desc v1.Descriptor) *Verifier {
	return &Verifier{blob: blob, desc: desc, left: desc.Size, hash: desc.Digest.Verifier()}
}

type Verifier struct {
	blob io.Reader
	desc v1.Descriptor
	left int64
	hash digest.Verifier
	// err ended reading: io.EOF if the blob matched its descriptor.
	err error
}

func (v *Verifier) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n, err := v.blob.Read(p)
	if int64(n) > v.left {
		v.err = fmt.Errorf("%w: blob %s is longer than the %d bytes that its manifest says", oci.ErrInvalid, v.desc.Digest, v.desc.Size)
		return 0, v.err
	}
	v.hash.Write(p[:n])
	v.left -= int64(n)
	if errors.Is(err, io.EOF) {
		err = v.finish()
	} else if err != nil {
		err = fmt.Errorf("reading blob %s: %w", v.desc.Digest, err)
	}
	v.err = err
	return n, err
}

func (v *Verifier) finish() error {
	switch {
	case v.left > 0:
		return fmt.Errorf("%w: blob %s ends after %d of the %d bytes that its manifest says", oci.ErrInvalid, v.desc.Digest, v.desc.Size-v.left, v.desc.Size)
	case !v.hash.Verified():
		return fmt.Errorf("%w: the content of blob %s does not have this digest", oci.ErrInvalid, v.desc.Digest)
	}
	return io.EOF
}
