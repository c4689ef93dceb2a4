package domainxml

import (
	"fmt"
	"strings"
	"unicode"
)

// A RefusedError says why the domain of an image cannot be used. It is final:
// the same document will be refused again.
type RefusedError struct {
	// Element is the path of the element below <domain>, such as "os/kernel" or
	// "devices/disk[2]/source"; empty if the document as a whole is meant.
	Element string
	// Reason is what is wrong with it, and what would be accepted.
	Reason string
}

func (e *RefusedError) Error() string {
	if e.Element == "" {
		return "domain XML of the image refused: " + e.Reason
	}
	return fmt.Sprintf("domain XML of the image refused: %s: %s", e.Element, e.Reason)
}

// maxReason bounds what an error repeats of a stranger's document.
const maxReason = 300

func refuse(element, format string, args ...any) error {
	reason := strings.Map(printable, fmt.Sprintf(format, args...))
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "") + "…"
	}
	return &RefusedError{Element: element, Reason: reason}
}

// printable keeps a stranger's text from steering the terminal of whoever reads
// the job log.
func printable(r rune) rune {
	if unicode.IsPrint(r) {
		return r
	}
	return '·'
}
