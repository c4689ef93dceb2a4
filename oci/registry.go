package oci

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"

	"github.com/containers/image/v5/docker"
	"github.com/containers/image/v5/pkg/blobinfocache/none"
	"github.com/containers/image/v5/types"
	"github.com/docker/distribution/registry/api/errcode"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
)

// registrySource reads an image from a registry, or from its mirrors as
// registries.conf says.
type registrySource struct {
	ref Reference
	src types.ImageSource
}

// openRegistry asks for the manifest at once: containers/image chooses among
// mirrors by that.
func openRegistry(ctx context.Context, ref Reference, creds Credentials) (source, error) {
	sys, err := creds.systemContext(ref.named)
	if err != nil {
		return nil, err
	}
	name, err := docker.NewReference(ref.named)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReference, err)
	}
	src, err := name.NewImageSource(ctx, sys)
	if err != nil {
		return nil, registryError("", err)
	}
	return &registrySource{ref: ref, src: src}, nil
}

func (s *registrySource) Manifest(ctx context.Context, d digest.Digest) ([]byte, string, error) {
	var instance *digest.Digest
	if d != "" && d != s.ref.Digest() {
		instance = &d
	}
	raw, mediaType, err := s.src.GetManifest(ctx, instance)
	if err != nil {
		return nil, "", registryError(fmt.Sprintf("manifest %s: ", d), err)
	}
	return raw, mediaType, nil
}

// Blob never follows desc.URLs: an image must not choose whom the host talks to.
func (s *registrySource) Blob(ctx context.Context, desc v1.Descriptor) (io.ReadCloser, error) {
	blob, _, err := s.src.GetBlob(ctx, types.BlobInfo{Digest: desc.Digest, Size: desc.Size}, none.NoCache)
	if err != nil {
		return nil, registryError(fmt.Sprintf("blob %s: ", desc.Digest), err)
	}
	return blob, nil
}

func (s *registrySource) Close() error { return s.src.Close() }

// registryError adds the sentinel that belongs to the registry's HTTP status, and
// says what to do where the library does not.
func registryError(what string, err error) error {
	var untrusted *tls.CertificateVerificationError
	var request *url.Error
	switch {
	case errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Errorf("%s%w (a registry without TLS has to be named insecure in registries.conf)", what, err)
	case errors.As(err, &untrusted):
		return fmt.Errorf("%s%w (the certificate of a private authority belongs in /etc/containers/certs.d/HOST:PORT/ca.crt)", what, err)
	case errors.As(err, &request) && errors.Is(request.Err, io.EOF):
		// The registry hung up in the midst of things.
		return fmt.Errorf("%s%w: %w", what, err, io.ErrUnexpectedEOF)
	}
	switch httpStatus(err) {
	case http.StatusNotFound:
		return fmt.Errorf("%w: %s%w", ErrNotFound, what, err)
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("%w: %s%w", ErrDenied, what, err)
	}
	return fmt.Errorf("%s%w", what, err)
}

// statusText finds the status in errors whose type containers/image keeps to
// itself (docker/errors.go, registryHTTPResponseToError).
var statusText = regexp.MustCompile(`\bStatusCode: (\d{3})\b`)

// httpStatus is the status that a registry answered with; 0 if err is about
// something else.
func httpStatus(err error) int {
	var unauthorized docker.ErrUnauthorizedForCredentials
	var unexpected docker.UnexpectedHTTPStatusError
	// An errcode.Error, or a bare errcode.ErrorCode where the text is the usual one.
	var coded errcode.ErrorCoder
	switch {
	case err == nil:
		return 0
	case errors.As(err, &unauthorized):
		return http.StatusUnauthorized
	case errors.As(err, &unexpected):
		return unexpected.StatusCode
	case errors.Is(err, docker.ErrTooManyRequests):
		return http.StatusTooManyRequests
	case errors.As(err, &coded):
		return coded.ErrorCode().Descriptor().HTTPStatusCode
	}
	if match := statusText.FindStringSubmatch(err.Error()); match != nil {
		status, _ := strconv.Atoi(match[1])
		return status
	}
	return 0
}
