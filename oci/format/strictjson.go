package format

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// ErrAmbiguous: two programs could read two different images from the document
// (CVE-2021-41190).
var ErrAmbiguous = errors.New("can be read in two ways")

// maxDepth limits the nesting of JSON. A manifest needs five levels.
const maxDepth = 64

// names are the known names in a JSON object. nil means that all names are distinct.
type names struct {
	below map[string]*names // by name: the names in the object that is its value
	exact map[string]string // the name of each that [fold] makes equal
}

// knownNames returns names, each with the names below it.
func knownNames(below map[string]*names) *names {
	n := &names{below: below, exact: make(map[string]string, len(below))}
	for name := range below {
		n.exact[fold(name)] = name
	}
	return n
}

// inside returns the names in the object called name. The error is [ErrAmbiguous] if name
// differs from a known one only in case.
func (n *names) inside(name string) (*names, error) {
	if n == nil {
		return nil, nil
	}
	if below, ok := n.below[name]; ok {
		return below, nil
	}
	if want, ok := n.exact[fold(name)]; ok {
		return nil, fmt.Errorf("%w: it has %q, which some programs read as %q", ErrAmbiguous, name, want)
	}
	return nil, nil
}

// checkJSON returns [ErrAmbiguous] for documents that JSON parsers read differently: with a
// duplicate name, or a name that differs from a known one only in case, which encoding/json
// accepts and most others ignore. For invalid JSON, it returns [ErrUnknown].
func checkJSON(raw []byte, known *names) error {
	if !utf8.Valid(raw) {
		return fmt.Errorf("%w: not valid JSON: not UTF-8", ErrUnknown)
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber() // fields check their numbers themselves
	if err := checkValue(d, known, 0); err != nil {
		return notJSON(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: not valid JSON: more data after its end", ErrUnknown)
	}
	return nil
}

// notJSON returns the error for invalid syntax or a truncated document.
func notJSON(err error) error {
	if errors.Is(err, ErrAmbiguous) || errors.Is(err, ErrUnknown) {
		return err
	}
	return fmt.Errorf("%w: not valid JSON: %w", ErrUnknown, err)
}

func checkValue(d *json.Decoder, known *names, depth int) error {
	token, err := d.Token()
	if err != nil {
		return err
	}
	if token != json.Delim('{') && token != json.Delim('[') {
		return nil
	}
	if depth++; depth > maxDepth {
		return fmt.Errorf("%w: JSON nests deeper than %d", ErrUnknown, maxDepth)
	}
	if token == json.Delim('{') {
		err = checkObject(d, known, depth)
	} else {
		for d.More() && err == nil {
			err = checkValue(d, known, depth)
		}
	}
	if err != nil {
		return err
	}
	_, err = d.Token() // the closing bracket
	return err
}

func checkObject(d *json.Decoder, known *names, depth int) error {
	seen := make(map[string]bool)
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return err
		}
		name, ok := token.(string)
		if !ok {
			return fmt.Errorf("%w: a name in an object is %v", ErrUnknown, token)
		}
		if seen[name] {
			return fmt.Errorf("%w: %q occurs twice in one object", ErrAmbiguous, name)
		}
		seen[name] = true
		below, err := known.inside(name)
		if err != nil {
			return err
		}
		if err := checkValue(d, below, depth); err != nil {
			return err
		}
	}
	return nil
}

// fold maps names that encoding/json considers equal to the same text. This includes letters
// outside of ASCII, such as the long s.
func fold(name string) string {
	return strings.Map(func(r rune) rune {
		for {
			next := unicode.SimpleFold(r)
			if next <= r {
				return next
			}
			r = next
		}
	}, name)
}
