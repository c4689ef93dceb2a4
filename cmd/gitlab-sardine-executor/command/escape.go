package command

import (
	"fmt"
	"strings"
	"unicode"
)

// EscapeControl escapes the characters that do not print: the maker of an image
// chooses its names, and a terminal obeys some of those characters. Runes in keep stay
// as they are.
func EscapeControl(text string, keep ...rune) string {
	isControl := func(r rune) bool {
		for _, k := range keep {
			if r == k {
				return false
			}
		}
		return !unicode.IsPrint(r)
	}
	if !strings.ContainsFunc(text, isControl) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if isControl(r) {
			b.WriteString(strings.Trim(fmt.Sprintf("%+q", r), "'"))
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}
