package domainxml_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"gitlab-sardine-executor/vm/domainxml"
)

// nasty are the values for each place of each document.
var nasty = []string{
	"/etc/canary", "canary.example", "qemu64,canary=on", "canary\n-drive", "", "-1", "4294967296", "18446744073709551616",
}

// keywords are more of them, for places that do not have a number. There, they would be one more
// text that is no number.
var keywords = []string{"unix", "network", "passthrough", "yes", "disk.qcow2"}

// guestStrings are the places with text that is passed to the guest only. Harmless characters
// are kept.
var guestStrings = []string{"disk/serial", "disk/vendor", "disk/product"}

// TestEveryValue replaces each attribute and each text of the realistic documents by each nasty
// value. The mutant is refused, or the result is harmless. What a document repeats, such as the
// address of each PCIe root port, is replaced once, and so is what two documents say in elements
// with the same attributes.
func TestEveryValue(t *testing.T) {
	var elsewhere sync.Map
	forEachDocument(t, func(t *testing.T, doc []byte) {
		found, doc := places(t, doc)
		if len(found) < 20 {
			t.Fatalf("the document has %d attributes and texts", len(found))
		}
		repeated := map[string]bool{}
		for _, p := range found {
			id := p.where + " " + string(doc[p.begin:p.end])
			if repeated[id] {
				continue
			}
			repeated[id] = true
			if _, done := elsewhere.LoadOrStore(id+"\n"+p.within, true); done {
				continue
			}
			values := nasty
			if _, err := strconv.ParseUint(string(doc[p.begin:p.end]), 0, 64); err != nil {
				values = slices.Concat(nasty, keywords)
			}
			for _, value := range values {
				check(t, p.mutate(doc, value), p.where+" = "+value)
			}
		}
	})
}

// intruders are elements to insert into each element of each document.
var intruders = []string{
	`<source file="/etc/canary" dev="/etc/canary" path="/etc/canary" dir="/etc/canary" network="canary"/>`,
	`<source type="unix" mode="connect" path="/etc/canary"/>`,
	`<log file="/etc/canary"/>`,
	`<seclabel model="dac"><label>canary</label></seclabel>`,
	`<driver name="canary" type="canary" iothread="1" path="/etc/canary"/>`,
	`<rom file="/etc/canary"/>`,
	`<backend type="passthrough" model="egd"><device path="/etc/canary"/></backend>`,
	`<address type="pci" domain="0" bus="4294967295" slot="0" function="0"/>`,
	`<alias name="canary"/>`,
	`<loader>/etc/canary/OVMF.fd</loader>`,
	`<domain type="qemu"><os><kernel>/etc/canary</kernel></os></domain>`,
	`<backingStore type="file"><format type="raw"/><source file="/etc/canary"/></backingStore>`,
	`<commandline xmlns="urn:x"><arg value="/etc/canary"/></commandline>`,
}

// TestEveryElement inserts each intruder into each element with an end tag, once into those that
// differ by their numbers only, as two disks at two addresses. The root and its children, whose
// content is that of the document, are elements of their own in each.
func TestEveryElement(t *testing.T) {
	var done sync.Map
	forEachDocument(t, func(t *testing.T, doc []byte) {
		ends := endTags(t, doc)
		if len(ends) < 20 {
			t.Fatalf("the document has %d elements with an end tag", len(ends))
		}
		for _, end := range ends {
			within := end.within
			if strings.Count(within, "<") < 2 {
				within = t.Name() + within
			}
			if _, again := done.LoadOrStore(within, true); again {
				continue
			}
			for _, intruder := range intruders {
				mutant := slices.Concat(doc[:end.at], []byte(intruder), doc[end.at:])
				check(t, mutant, fmt.Sprintf("%s at byte %d", intruder, end.at))
			}
		}
	})
}

// An endTag is one of a document.
type endTag struct {
	within string // the start tags of the elements that it is in, without the root's and numbers
	at     int    // its offset
}

func endTags(t *testing.T, doc []byte) (found []endTag) {
	t.Helper()
	var tags []string
	dec := xml.NewDecoder(bytes.NewReader(doc))
	for {
		at := int(dec.InputOffset())
		tok, err := dec.RawToken()
		if err == io.EOF {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			tags = append(tags, withoutNumbers(tok))
		case xml.EndElement:
			if bytes.HasPrefix(doc[at:], []byte("</")) { // not <element/>
				found = append(found, endTag{strings.Join(tags[1:], ""), at})
			}
			tags = tags[:len(tags)-1]
		}
	}
}

func forEachDocument(t *testing.T, f func(t *testing.T, doc []byte)) {
	files, err := filepath.Glob("testdata/realistic/*.xml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no documents: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			f(t, read(t, file))
		})
	}
}

// checked are the domains that check has found harmless.
var checked sync.Map

// check checks that a mutant is refused, or its result is harmless.
func check(t *testing.T, doc []byte, what string) {
	result, err := domainxml.Rebuild(doc, domainxml.Options{Disks: layers})
	var refused *domainxml.RefusedError
	if errors.As(err, &refused) {
		return
	}
	if err != nil {
		t.Fatalf("%s: %v is not a refusal", what, err)
	}
	out := marshal(t, result.Domain)
	// Many mutants have the same result.
	if _, seen := checked.LoadOrStore(out, true); !seen {
		harmless(t, out)
		again(t, result, domainxml.Options{Disks: layers})
	}
	if strings.Contains(out, "canary") && !toGuest(what) {
		t.Errorf("%s: a canary is alive", what)
	}
	if t.Failed() {
		t.Fatalf("%s:\n%s", what, out)
	}
}

func toGuest(what string) bool {
	for _, s := range guestStrings {
		if strings.Contains(what, s+" = canary.example") {
			return true
		}
	}
	return false
}

// A place is an attribute or text of a document.
type place struct {
	where      string // its path
	within     string // the start tags of the elements that it is in, without the root's
	begin, end int    // of its value in the document
}

// mutate replaces the value of a place.
func (p place) mutate(doc []byte, value string) []byte {
	var out bytes.Buffer
	out.Write(doc[:p.begin])
	xml.EscapeText(&out, []byte(value))
	out.Write(doc[p.end:])
	return out.Bytes()
}

// places returns the attributes and texts of a document, and the document as their offsets
// count it.
func places(t *testing.T, doc []byte) ([]place, []byte) {
	t.Helper()
	var found []place
	doc = rewrite(t, doc, func(path, within string, begin, end int) { found = append(found, place{path, within, begin, end}) })
	return found, doc
}

// rewrite copies a document. value is told of each attribute and text.
func rewrite(t *testing.T, doc []byte, value func(path, within string, begin, end int)) []byte {
	t.Helper()
	var out bytes.Buffer
	var path, tags []string
	dec := xml.NewDecoder(bytes.NewReader(doc))
	escape := func(s string) { xml.EscapeText(&out, []byte(s)) }
	for {
		tok, err := dec.RawToken()
		if err == io.EOF {
			return out.Bytes()
		}
		if err != nil {
			t.Fatal(err)
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			path = append(path, tok.Name.Local)
			tags = append(tags, fmt.Sprint(tok))
			within := strings.Join(tags[1:], "")
			out.WriteString("<" + rawName(tok.Name))
			for _, a := range tok.Attr {
				out.WriteString(" " + rawName(a.Name) + `="`)
				begin := out.Len()
				escape(a.Value)
				if a.Name.Space != "xmlns" {
					value(strings.Join(path, "/")+"/@"+a.Name.Local, within, begin, out.Len())
				}
				out.WriteString(`"`)
			}
			out.WriteString(">")
		case xml.EndElement:
			path, tags = path[:len(path)-1], tags[:len(tags)-1]
			out.WriteString("</" + rawName(tok.Name) + ">")
		case xml.CharData:
			begin := out.Len()
			escape(string(tok))
			if strings.TrimSpace(string(tok)) != "" {
				value(strings.Join(path, "/"), strings.Join(tags[1:], ""), begin, out.Len())
			}
		}
	}
}

// withoutNumbers returns a start tag as text, with its attributes that are not numbers.
func withoutNumbers(tag xml.StartElement) string {
	text := tag.Name.Local
	for _, a := range tag.Attr {
		if _, err := strconv.ParseUint(a.Value, 0, 64); err != nil {
			text += " " + a.Name.Local + "=" + a.Value
		}
	}
	return "<" + text + ">"
}

func rawName(n xml.Name) string {
	if n.Space == "" {
		return n.Local
	}
	return n.Space + ":" + n.Local
}
