package domainxml

import (
	"regexp"
	"slices"
	"strings"
	"sync"
)

// oneOf returns v if it is among the allowed values, and otherwise the empty string: the
// attribute is omitted, and libvirt uses its default.
func oneOf(v string, allowed ...string) string {
	if slices.Contains(allowed, v) {
		return v
	}
	return ""
}

func onOff(v string) string { return oneOf(v, "on", "off") }
func yesNo(v string) string { return oneOf(v, "yes", "no") }

// A pattern is a regular expression that is compiled when it is first used: all processes of
// this program would compile them at their start, and few read any XML.
type pattern func() *regexp.Regexp

func newPattern(text string) pattern {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(text) })
}

// matching returns v if it matches p, and otherwise the empty string.
func matching(p pattern, v string) string {
	if p().MatchString(v) {
		return v
	}
	return ""
}

// upTo returns n if it is set and not above the limit, and otherwise nil.
func upTo(n *uint, limit uint) *uint {
	if n == nil || *n > limit {
		return nil
	}
	return ptr(*n)
}

func ptr[T any](v T) *T { return &v }

// text returns v in a form that is safe in an error message.
func text(v string) string {
	if len(v) > 80 {
		v = strings.ToValidUTF8(v[:80], "") + "…"
	}
	return v
}
