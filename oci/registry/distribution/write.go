package distribution

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/opencontainers/go-digest"
)

// HasBlob reports whether the repository has a blob, and its size; -1 if the
// registry does not say it.
func (c *Client) HasBlob(ctx context.Context, d digest.Digest) (bool, int64, error) {
	if err := d.Validate(); err != nil {
		return false, -1, fmt.Errorf("digest %q: %w", d, err)
	}
	resp, err := c.request(ctx, http.MethodHead, c.path("blobs", d.String()), nil)
	if err != nil {
		return false, -1, err
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return true, resp.ContentLength, resp.Body.Close()
	case http.StatusNotFound:
		return false, -1, resp.Body.Close()
	}
	return false, -1, c.statusError(resp)
}

// PutBlob writes a blob of size bytes.
func (c *Client) PutBlob(ctx context.Context, d digest.Digest, size int64, content io.Reader) error {
	resp, err := c.request(ctx, http.MethodPost, c.path("blobs", "uploads")+"/", nil)
	if err != nil {
		return err
	}
	at, err := c.uploadTo(resp, http.StatusAccepted)
	if err != nil {
		return err
	}
	octets := http.Header{"Content-Type": {"application/octet-stream"}}
	// The content ends with this call, though net/http may read on for a moment.
	counted := &upload{content: content, meter: c.meter}
	defer counted.Close()
	if resp, err = c.do(ctx, call{method: http.MethodPatch, url: at, header: octets, body: counted, size: size}); err != nil {
		return counted.reason(err)
	}
	if at, err = c.uploadTo(resp, http.StatusAccepted, http.StatusNoContent, http.StatusCreated, http.StatusOK); err != nil {
		return err
	}
	query := at.Query()
	query.Set("digest", d.String())
	at.RawQuery = query.Encode()
	if resp, err = c.do(ctx, call{method: http.MethodPut, url: at, header: octets, commits: true}); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusNoContent {
		return c.statusError(resp)
	}
	return resp.Body.Close()
}

// uploadTo is where an upload goes on.
func (c *Client) uploadTo(resp *http.Response, want ...int) (*url.URL, error) {
	for _, status := range want {
		if resp.StatusCode == status {
			_ = resp.Body.Close() // nothing is expected there
			return follow(resp)
		}
	}
	return nil, c.statusError(resp)
}

// PutManifest writes a manifest or index under a tag or digest.
func (c *Client) PutManifest(ctx context.Context, reference, mediaType string, raw []byte) error {
	ctx, cancel := c.withDeadline(ctx, "a manifest was not taken")
	defer cancel()
	u, err := c.base(ctx)
	if err != nil {
		return err
	}
	header := http.Header{}
	if mediaType != "" {
		header.Set("Content-Type", mediaType)
	}
	resp, err := c.do(ctx, call{
		method: http.MethodPut, url: u.JoinPath(c.path("manifests", reference)), header: header, body: bytes.NewReader(raw), size: int64(len(raw)),
	})
	if err != nil {
		return err
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return c.statusError(resp)
	}
	return resp.Body.Close()
}
