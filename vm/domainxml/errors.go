package domainxml

import (
	"fmt"
	"strings"
	"unicode"
)

// A RefusedError is the reason why the domain of an image cannot be used. Retrying does not
// help.
type RefusedError struct {
	// Element is the path of the element below <domain>, such as "os/kernel" or
	// "devices/disk[2]/source"; empty for the whole document.
	Element string
	// Reason describes what is wrong and what is accepted.
	Reason string
}

func (e *RefusedError) Error() string {
	if e.Element == "" {
		return "domain XML of the image refused: " + e.Reason
	}
	return fmt.Sprintf("domain XML of the image refused: %s: %s", e.Element, e.Reason)
}

// maxReason is the maximum length of untrusted text in an error.
const maxReason = 300

func refuse(element, format string, args ...any) error {
	reason := strings.Map(printable, fmt.Sprintf(format, args...))
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "") + "…"
	}
	return &RefusedError{Element: element, Reason: reason}
}

// printable removes control characters from untrusted text, which could control the terminal
// of a reader of the job log.
func printable(r rune) rune {
	if unicode.IsPrint(r) {
		return r
	}
	return '·'
}
