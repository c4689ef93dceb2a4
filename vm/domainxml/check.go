package domainxml

import (
	"regexp"
	"slices"
	"strings"
)

// oneOf is v if it is among the allowed values, otherwise empty: the attribute is
// left out, and libvirt's default holds.
func oneOf(v string, allowed ...string) string {
	if slices.Contains(allowed, v) {
		return v
	}
	return ""
}

func onOff(v string) string { return oneOf(v, "on", "off") }
func yesNo(v string) string { return oneOf(v, "yes", "no") }

// matching is v if it has the form of pattern, otherwise empty.
func matching(pattern *regexp.Regexp, v string) string {
	if pattern.MatchString(v) {
		return v
	}
	return ""
}

// upTo is n if it is set and not above the limit, otherwise nil.
func upTo(n *uint, limit uint) *uint {
	if n == nil || *n > limit {
		return nil
	}
	return ptr(*n)
}

func ptr[T any](v T) *T { return &v }

// text is v as it may be repeated in an error.
func text(v string) string {
	if len(v) > 80 {
		v = strings.ToValidUTF8(v[:80], "") + "…"
	}
	return v
}
