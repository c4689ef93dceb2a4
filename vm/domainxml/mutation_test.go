package domainxml_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"gitlab-sardine-executor/vm/domainxml"
)

// nasty are the values for each place of each document.
var nasty = []string{
	"/etc/canary", "canary.example", "qemu64,canary=on", "canary\n-drive", "", "-1", "4294967296", "18446744073709551616",
	"unix", "network", "passthrough", "yes", "disk.qcow2",
}

// guestStrings are the places with text that is passed to the guest only. Harmless characters
// are kept.
var guestStrings = []string{"disk/serial", "disk/vendor", "disk/product"}

// TestEveryValue replaces each attribute and each text of each realistic document by each nasty
// value. The mutant is refused, or the result is harmless.
func TestEveryValue(t *testing.T) {
	forEachDocument(t, func(t *testing.T, doc []byte) {
		for place := range count(t, doc) {
			for _, value := range nasty {
				mutant, where := mutate(t, doc, place, value)
				check(t, mutant, where+" = "+value)
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

// TestEveryElement inserts each intruder into each element with an end tag.
func TestEveryElement(t *testing.T) {
	forEachDocument(t, func(t *testing.T, doc []byte) {
		for _, intruder := range intruders {
			for at := range doc {
				if doc[at] != '<' || doc[at+1] != '/' {
					continue
				}
				mutant := append(append(bytes.Clone(doc[:at]), intruder...), doc[at:]...)
				check(t, mutant, fmt.Sprintf("%s at byte %d", intruder, at))
			}
		}
	})
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

// count returns the number of attributes and texts of a document.
func count(t *testing.T, doc []byte) int {
	n := 0
	rewrite(t, doc, func(string, string) (string, bool) { n++; return "", false })
	return n
}

// mutate replaces the attribute or text with that number, and returns its path.
func mutate(t *testing.T, doc []byte, place int, value string) (mutant []byte, where string) {
	n := 0
	mutant = rewrite(t, doc, func(path, _ string) (string, bool) {
		hit := n == place
		if hit {
			where = path
		}
		n++
		return value, hit
	})
	return mutant, where
}

// rewrite copies a document. value returns a new value for an attribute or text, and whether to
// use it.
func rewrite(t *testing.T, doc []byte, value func(path, old string) (string, bool)) []byte {
	var out bytes.Buffer
	var path []string
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
			out.WriteString("<" + rawName(tok.Name))
			for _, a := range tok.Attr {
				v := a.Value
				if a.Name.Space != "xmlns" {
					if other, ok := value(strings.Join(path, "/")+"/@"+a.Name.Local, v); ok {
						v = other
					}
				}
				out.WriteString(" " + rawName(a.Name) + `="`)
				escape(v)
				out.WriteString(`"`)
			}
			out.WriteString(">")
		case xml.EndElement:
			path = path[:len(path)-1]
			out.WriteString("</" + rawName(tok.Name) + ">")
		case xml.CharData:
			v := string(tok)
			if strings.TrimSpace(v) != "" {
				if other, ok := value(strings.Join(path, "/"), v); ok {
					v = other
				}
			}
			escape(v)
		}
	}
}

func rawName(n xml.Name) string {
	if n.Space == "" {
		return n.Local
	}
	return n.Space + ":" + n.Local
}
