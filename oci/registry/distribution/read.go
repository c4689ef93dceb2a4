package distribution

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/containers/image/v5/manifest"
	"github.com/opencontainers/go-digest"
)

// errCannotSkip: a blob is shorter than it was.
var errCannotSkip = errors.New("the blob ends before the place to go on from")

// Manifest is the manifest or index that a tag or digest names, and the media type
// that the registry gives for it. Of one larger than limit bytes, limit+1 bytes
// are returned.
func (c *Client) Manifest(ctx context.Context, reference string, limit int64) ([]byte, string, error) {
	ctx, cancel := c.withDeadline(ctx, "no whole manifest")
	defer cancel()
	header := http.Header{"Accept": manifest.DefaultRequestedManifestMIMETypes}
	resp, err := c.request(ctx, http.MethodGet, c.path("manifests", reference), header)
	if err != nil {
		return nil, "", err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, "", c.statusError(resp)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, "", err
	}
	mediaType, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		mediaType = ""
	}
	return raw, mediaType, nil
}

// Blob reads a blob of size bytes from offset on, which may be 0; ctx must last
// until its Close. What comes is not verified.
func (c *Client) Blob(ctx context.Context, d digest.Digest, offset, size int64) (io.ReadCloser, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("digest %q: %w", d, err)
	}
	header := http.Header{}
	if offset > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, size-1))
	}
	resp, err := c.request(ctx, http.MethodGet, c.path("blobs", d.String()), header)
	if err != nil {
		return nil, err
	}
	switch {
	case resp.StatusCode == http.StatusPartialContent && offset > 0:
		if !strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", offset)) {
			return nil, errors.Join(&protocolError{resp.Request.URL.Host, fmt.Sprintf("asked for a blob from byte %d on, it sends another part", offset)}, resp.Body.Close())
		}
	case resp.StatusCode == http.StatusOK:
		if n, err := io.CopyN(io.Discard, resp.Body, offset); err != nil {
			if errors.Is(err, io.EOF) && n < offset {
				err = fmt.Errorf("%w (%d of %d bytes)", errCannotSkip, n, offset)
			}
			return nil, errors.Join(err, resp.Body.Close())
		}
	default:
		return nil, c.statusError(resp)
	}
	return resp.Body, nil
}

func (c *Client) path(kind, reference string) string {
	return "/v2/" + c.options.Repository + "/" + kind + "/" + reference
}

// warningText is the text of a Warning header, if it has the form that the
// distribution specification allows.
func warningText(header string) (string, bool) {
	text, ok := strings.CutPrefix(header, `299 - "`)
	if !ok || len(text) < 1 || text[len(text)-1] != '"' {
		return "", false
	}
	text = strings.NewReplacer(`\\`, `\`, `\"`, `"`).Replace(text[:len(text)-1])
	return oneLine(text), true
}
