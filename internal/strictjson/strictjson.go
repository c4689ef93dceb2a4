// Package strictjson refuses JSON documents that parsers read differently: with duplicate
// names, or names that differ from known ones only in case.
package strictjson

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

// ErrAmbiguous: two programs could read the document differently (CVE-2021-41190).
var ErrAmbiguous = errors.New("can be read in two ways")

// errStructure: the syntax is valid, but the document is refused.
var errStructure = errors.New("JSON refused")

// maxDepth limits the nesting of JSON. A manifest needs five levels.
const maxDepth = 64

// Names are the known names in a JSON object. nil means that all names are distinct.
type Names struct {
	below map[string]*Names // by name: the names in the object that is its value
	exact map[string]string // the name of each that [fold] makes equal
}

// Known returns names, each with the names in the object that is its value; nil if it is no
// object.
func Known(below map[string]*Names) *Names {
	n := &Names{below: below, exact: make(map[string]string, len(below))}
	for name := range below {
		n.exact[fold(name)] = name
	}
	return n
}

// inside returns the names in the object called name. The error is [ErrAmbiguous] if name
// differs from a known one only in case.
func (n *Names) inside(name string) (*Names, error) {
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

// Check returns [ErrAmbiguous] for a duplicate name, and for a name that differs from a known
// one only in case, which encoding/json accepts and most others ignore. For invalid JSON, it
// returns other errors.
func Check(raw []byte, known *Names) error {
	if !utf8.Valid(raw) {
		return errors.New("not valid JSON: not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber() // fields check their numbers themselves
	if err := checkValue(d, known, 0); err != nil {
		return notJSON(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("not valid JSON: more data after its end")
	}
	return nil
}

// notJSON returns the error for invalid syntax or a truncated document.
func notJSON(err error) error {
	if errors.Is(err, ErrAmbiguous) || errors.Is(err, errStructure) {
		return err
	}
	return fmt.Errorf("not valid JSON: %w", err)
}

func checkValue(d *json.Decoder, known *Names, depth int) error {
	token, err := d.Token()
	if err != nil {
		return err
	}
	if token != json.Delim('{') && token != json.Delim('[') {
		return nil
	}
	if depth++; depth > maxDepth {
		return fmt.Errorf("%w: nested deeper than %d", errStructure, maxDepth)
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

func checkObject(d *json.Decoder, known *Names, depth int) error {
	seen := make(map[string]bool)
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return err
		}
		name, ok := token.(string)
		if !ok {
			return fmt.Errorf("%w: a name in an object is %v", errStructure, token)
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
