package main

import (
	"fmt"
	"strings"
	"unicode"
)

// visible shows what would not be printed but obeyed: names in an image are its
// maker's choice, and a terminal takes some of them for commands. Line feeds stay
// where they separate errors.
func visible(text string, keep ...rune) string {
	obeyed := func(r rune) bool {
		for _, k := range keep {
			if r == k {
				return false
			}
		}
		return !unicode.IsPrint(r)
	}
	if !strings.ContainsFunc(text, obeyed) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if obeyed(r) {
			b.WriteString(strings.Trim(fmt.Sprintf("%+q", r), "'"))
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}
