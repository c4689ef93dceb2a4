package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"

	"github.com/containers/image/v5/types"
	"github.com/opencontainers/image-spec/specs-go/v1"
)

// A rangeSource is a [source] that can give the rest of a blob.
type rangeSource interface {
	// BlobAt is the blob from offset on, which is less than its size. The error is
	// errNoRange if only whole blobs can be had.
	BlobAt(ctx context.Context, desc v1.Descriptor, offset int64) (io.ReadCloser, error)
}

var errNoRange = errors.New("the source gives whole blobs only")

func (s *layoutSource) BlobAt(ctx context.Context, desc v1.Descriptor, offset int64) (io.ReadCloser, error) {
	blob, err := s.Blob(ctx, desc)
	if err != nil {
		return nil, err
	}
	seeker, ok := blob.(io.Seeker)
	if !ok {
		return nil, errors.Join(errNoRange, blob.Close())
	}
	if _, err := seeker.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(fmt.Errorf("reading OCI layout: %w", err), blob.Close())
	}
	return blob, nil
}

// BlobAt sends a Range request.
//
// containers/image has a method for that (private.BlobChunkAccessor), with an
// argument whose type only its own packages can name. The connection, its
// credentials and mirrors are all behind it, so it is called by reflection; if a
// later release should change it, whole blobs are read in place of ranges.
func (s *registrySource) BlobAt(ctx context.Context, desc v1.Descriptor, offset int64) (io.ReadCloser, error) {
	method := reflect.ValueOf(s.src).MethodByName("GetBlobAt")
	if !method.IsValid() || !isGetBlobAt(method.Type()) {
		return nil, errNoRange
	}
	chunks := reflect.MakeSlice(method.Type().In(2), 1, 1)
	chunks.Index(0).FieldByName("Offset").SetUint(uint64(offset))
	chunks.Index(0).FieldByName("Length").SetUint(uint64(desc.Size - offset))
	info := types.BlobInfo{Digest: desc.Digest, Size: desc.Size}
	out := method.Call([]reflect.Value{reflect.ValueOf(ctx), reflect.ValueOf(info), chunks})
	if err, _ := out[2].Interface().(error); err != nil {
		return nil, registryError(fmt.Sprintf("blob %s: ", desc.Digest), err)
	}
	return firstBody(ctx, out[0].Interface().(chan io.ReadCloser), out[1].Interface().(chan error))
}

// firstBody takes the one body that comes. Closing it lets go the goroutine which
// sends on the channels, and closes them.
func firstBody(ctx context.Context, bodies chan io.ReadCloser, errs chan error) (io.ReadCloser, error) {
	err := io.ErrUnexpectedEOF
	select {
	case body, ok := <-bodies:
		if ok {
			return &rangeBody{ReadCloser: body, rest: func() { drain(bodies, errs) }}, nil
		}
	case failure, ok := <-errs:
		if ok {
			err = registryError("", failure)
		}
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	drain(bodies, errs)
	return nil, err
}

func drain(bodies chan io.ReadCloser, errs chan error) {
	go func() {
		for range errs {
		}
	}()
	go func() {
		for body := range bodies {
			_ = body.Close()
		}
	}()
}

type rangeBody struct {
	io.ReadCloser
	rest func()
}

func (b *rangeBody) Close() error {
	b.rest()
	return b.ReadCloser.Close()
}

func isGetBlobAt(t reflect.Type) bool {
	if t.NumIn() != 3 || t.NumOut() != 3 || t.In(1) != reflect.TypeFor[types.BlobInfo]() || t.In(2).Kind() != reflect.Slice ||
		t.Out(0) != reflect.TypeFor[chan io.ReadCloser]() || t.Out(1) != reflect.TypeFor[chan error]() {
		return false
	}
	chunk := t.In(2).Elem()
	if chunk.Kind() != reflect.Struct {
		return false
	}
	for _, name := range []string{"Offset", "Length"} {
		if field, ok := chunk.FieldByName(name); !ok || field.Type.Kind() != reflect.Uint64 {
			return false
		}
	}
	return true
}
