package registry

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/containers/image/v5/docker/reference"
	"github.com/containers/image/v5/pkg/sysregistriesv2"
	"github.com/containers/image/v5/types"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/registry/distribution"
	"gitlab-sardine-executor/oci/transport"
)

// registrySource reads an image from a registry or from one of its mirrors in
// registries.conf.
type registrySource struct {
	ref oci.Reference
	endpoint
	// The manifest that ref names, read once: a tag could move during a pull.
	raw       []byte
	mediaType string
}

// An endpoint is the registry that a reference names, or a mirror of it.
type endpoint struct {
	client  *distribution.Client
	name    reference.Named
	account account
}

// Open requests the manifest immediately, from each mirror until one has it. stall is the
// stall timeout; 0 means the default.
func Open(ctx context.Context, ref oci.Reference, creds Credentials, stall time.Duration) (transport.Source, error) {
	sys := creds.environment()
	named, err := namedOf(ref)
	if err != nil {
		return nil, err
	}
	places, err := pullPlaces(sys, named)
	if err != nil {
		return nil, err
	}
	var failed []string
	for i, place := range places {
		src, err := openPlace(ctx, sys, ref, named, creds, place, stall)
		if err == nil {
			return src, nil
		}
		if i == len(places)-1 || ctx.Err() != nil {
			if len(failed) > 0 {
				err = fmt.Errorf("%w (mirrors failed as well: %s)", err, strings.Join(failed, "; "))
			}
			return nil, err
		}
		failed = append(failed, err.Error())
	}
	return nil, fmt.Errorf("%w: registries.conf leaves no place to pull %s from", oci.ErrDenied, ref)
}

// pullPlaces returns the mirrors of an image's registry, and the registry itself last.
func pullPlaces(sys *types.SystemContext, named reference.Named) ([]sysregistriesv2.PullSource, error) {
	rule, err := findRule(sys, named.Name())
	if err != nil {
		return nil, err
	}
	if rule == nil {
		return []sysregistriesv2.PullSource{{Reference: named}}, nil
	}
	places, err := rule.PullSourcesFromReference(named)
	if err != nil {
		return nil, fmt.Errorf("reading registries.conf: %w", err)
	}
	return places, nil
}

// findRule returns the entry of registries.conf for a registry or a name in it, or nil. The
// error is [oci.ErrDenied] if the entry blocks it.
func findRule(sys *types.SystemContext, name string) (*sysregistriesv2.Registry, error) {
	rule, err := sysregistriesv2.FindRegistry(sys, name)
	if err != nil {
		return nil, fmt.Errorf("reading registries.conf: %w", err)
	}
	if rule != nil && rule.Blocked {
		return nil, fmt.Errorf("%w: the administrator has blocked %s (%s)", oci.ErrDenied, rule.Prefix, sysregistriesv2.ConfigPath(sys))
	}
	return rule, nil
}

func openPlace(ctx context.Context, sys *types.SystemContext, ref oci.Reference, named reference.Named, creds Credentials, place sysregistriesv2.PullSource, stall time.Duration) (_ transport.Source, err error) {
	if _, err := findRule(sys, place.Reference.Name()); err != nil {
		return nil, err
	}
	account, err := creds.accountFor(sys, named, place.Reference)
	if err != nil {
		return nil, err
	}
	e, err := newEndpoint(sys, place.Reference, account, distribution.Options{Insecure: place.Endpoint.Insecure, StallTimeout: stall})
	if err != nil {
		return nil, err
	}
	s := &registrySource{ref: ref, endpoint: e}
	if s.raw, s.mediaType, err = s.fetch(ctx, tagOrDigest(place.Reference)); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func newEndpoint(sys *types.SystemContext, named reference.Named, a account, o distribution.Options) (endpoint, error) {
	o.System, o.Registry, o.Repository, o.Auth = sys, reference.Domain(named), reference.Path(named), a.auth
	client, err := distribution.New(o)
	if err != nil {
		return endpoint{}, err
	}
	return endpoint{client, named, a}, nil
}

func tagOrDigest(named reference.Named) string {
	switch named := named.(type) {
	case reference.Digested:
		return named.Digest().String()
	case reference.Tagged:
		return named.Tag()
	}
	return "latest"
}

func (s *registrySource) Manifest(ctx context.Context, d digest.Digest) ([]byte, string, error) {
	if d == "" || d == s.ref.Digest() {
		return s.raw, s.mediaType, nil
	}
	if err := d.Validate(); err != nil {
		return nil, "", fmt.Errorf("%w: digest %q: %w", oci.ErrFormat, d, err)
	}
	raw, mediaType, err := s.fetch(ctx, d.String())
	if err != nil {
		return nil, "", fmt.Errorf("manifest %s: %w", d, err)
	}
	return raw, mediaType, nil
}

func (s *registrySource) fetch(ctx context.Context, what string) ([]byte, string, error) {
	raw, served, err := s.client.Manifest(ctx, what, transport.MaxManifest)
	if err != nil {
		return nil, "", s.explain(err)
	}
	if !json.Valid(raw) && len(raw) <= transport.MaxManifest {
		return nil, "", s.notManifest(served)
	}
	return raw, served, nil
}

// notManifest describes an answer that is no manifest: usually a page of a proxy or of a
// server that is no registry.
func (s *registrySource) notManifest(served string) error {
	kind := "without a Content-Type"
	if served != "" {
		kind = fmt.Sprintf("as %q", served)
	}
	return fmt.Errorf("%w: %s served a manifest %s that is not valid JSON: is that a registry, or a proxy or a page for logging in?",
		oci.ErrFormat, reference.Domain(s.name), kind)
}

// Blob never follows desc.URLs: an image must not choose the host to connect to.
func (s *registrySource) Blob(ctx context.Context, desc v1.Descriptor) (io.ReadCloser, error) {
	return s.BlobAt(ctx, desc, 0)
}

// BlobAt sends a Range request.
func (s *registrySource) BlobAt(ctx context.Context, desc v1.Descriptor, offset int64) (io.ReadCloser, error) {
	blob, err := s.client.Blob(ctx, desc.Digest, offset, desc.Size)
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", desc.Digest, s.explain(err))
	}
	return blob, nil
}

func (e endpoint) Close() error { return e.client.Close() }

// explain wraps err with the error of package oci for the registry's HTTP status, and adds
// what to do.
func (e endpoint) explain(err error) error {
	var untrusted *tls.CertificateVerificationError
	var refused *distribution.RefusedError
	switch {
	case errors.As(err, &refused):
		return fmt.Errorf("%w: %w", oci.ErrInvalid, err)
	case errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Errorf("%w (a registry without TLS must be marked insecure in registries.conf)", err)
	case errors.As(err, &untrusted):
		return fmt.Errorf("%w (the certificate of a private authority belongs in /etc/containers/certs.d/HOST:PORT/ca.crt)", err)
	}
	switch httpStatus(err) {
	case http.StatusNotFound:
		return fmt.Errorf("%w: %w", oci.ErrNotFound, err)
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("%w: %w (%s)", oci.ErrDenied, err, e.account)
	}
	return err
}

// httpStatus returns the HTTP status of a registry's error response; 0 for other errors.
func httpStatus(err error) int {
	var answer *distribution.StatusError
	if errors.As(err, &answer) {
		return answer.Status
	}
	return 0
}

// namedOf converts ref for containers/image.
func namedOf(ref oci.Reference) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(ref.String())
	if err != nil {
		return nil, fmt.Errorf("%w: %q: %w", oci.ErrReference, ref, err)
	}
	return named, nil
}
