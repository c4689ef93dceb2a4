package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/bmatcuk/doublestar/v4"

	"gitlab-sardine-executor/oci"
)

// Allowed reports whether jobs may use image.
func (s *Settings) Allowed(image string) bool {
	if len(s.Defaults.AllowedImages) == 0 {
		return true
	}
	return slices.ContainsFunc(s.Defaults.AllowedImages, func(pattern string) bool { return matchImage(pattern, image) })
}

// AllowsLocal reports whether jobs may use a layout or a file on this host: only a pattern that
// begins with the same prefix, oci: or file:, can allow that.
func (s *Settings) AllowsLocal(image string) bool {
	ref, err := oci.ParseReference(image)
	return err == nil && ref.LocalPrefix() != "" && slices.ContainsFunc(s.Defaults.AllowedImages, func(pattern string) bool {
		return strings.HasPrefix(pattern, ref.LocalPrefix()) && matchImage(pattern, image)
	})
}

// matchImage matches a reference both as it was written and in full: "debian:*" and
// "docker.io/library/debian:*" match debian:12. An image on this host is matched by its
// cleaned path.
//
// A reference with a digest is matched as NAME@DIGEST, whatever tag stands beside it:
// the digest decides what is pulled, and can be that of any manifest in the
// repository.
func matchImage(pattern, image string) bool {
	ref, err := oci.ParseReference(image)
	if err != nil {
		return false
	}
	full := ref.String()
	switch {
	case ref.Digest() != "":
		return !forTags(pattern) && (doublestar.MatchUnvalidated(pattern, full) || doublestar.MatchUnvalidated(pattern, familiar(full)))
	case ref.LocalPrefix() != "":
		return doublestar.MatchUnvalidated(pattern, full)
	}
	return doublestar.MatchUnvalidated(pattern, image) || doublestar.MatchUnvalidated(pattern, full)
}

// forTags reports whether a pattern is about tags: it has a colon behind its last
// slash and no @. Such a colon does not mean the one in a digest.
func forTags(pattern string) bool {
	last := pattern[strings.LastIndexByte(pattern, '/')+1:]
	return strings.Contains(last, ":") && !strings.Contains(last, "@")
}

// familiar shortens a full reference by Docker's default registry and library,
// unless that names another image: docker.io/localhost/x is not localhost/x.
func familiar(full string) string {
	short := strings.TrimPrefix(strings.TrimPrefix(full, "docker.io/"), "library/")
	if ref, err := oci.ParseReference(short); err != nil || ref.String() != full {
		return full
	}
	return short
}

// checkGlob makes sure that pattern is a glob, and means what it seems to mean: for the
// library, as for GitLab's docker executor, ** crosses slashes only as a whole path
// element, and is * otherwise.
func checkGlob(pattern string) error {
	if !doublestar.ValidatePattern(pattern) {
		return errors.New("not a glob")
	}
	const ends = "/{,}" // alternatives begin and end elements, too
	for at := 0; ; {
		i := strings.Index(pattern[at:], "**")
		if i < 0 {
			return nil
		}
		begin, end := at+i, at+i+2
		whole := (begin == 0 || strings.IndexByte(ends, pattern[begin-1]) >= 0) &&
			(end == len(pattern) || strings.IndexByte(ends, pattern[end]) >= 0)
		if !whole {
			return fmt.Errorf("** crosses slashes only as a whole path element: write %q, or one * if no slash is to be crossed",
				wholeElement(pattern[:begin], strings.TrimLeft(pattern[end:], "*")))
		}
		at = end
	}
}

// wholeElement puts ** between two parts of a glob.
func wholeElement(before, rest string) string {
	if before != "" && !strings.HasSuffix(before, "/") {
		before += "/"
	}
	if rest != "" && rest[0] != '/' {
		rest = "/*" + rest
	}
	return before + "**" + rest
}
