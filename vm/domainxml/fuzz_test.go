package domainxml_test

import (
	"errors"
	"testing"

	"gitlab-sardine-executor/vm/domainxml"
)

// FuzzRebuild searches for a document with a harmful result, or one that changes when it is
// rebuilt again.
func FuzzRebuild(f *testing.F) {
	for _, file := range documents(f) {
		f.Add(read(f, file))
	}
	for _, h := range hostiles() {
		if len(h.doc) < 8<<10 {
			f.Add([]byte(h.doc))
		}
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		result, err := domainxml.Rebuild(doc, domainxml.Options{Disks: layers})
		if err != nil {
			var refused *domainxml.RefusedError
			if !errors.As(err, &refused) {
				t.Fatalf("%v is not a refusal", err)
			}
			return
		}
		harmless(t, marshal(t, result.Domain))
		again(t, result, domainxml.Options{Disks: layers})
		for _, d := range result.Domain.Devices.Disks {
			if d.Source.File.File == "" {
				continue
			}
			if !isLayer(d.Source.File.File, d.Driver.Type) {
				t.Errorf("a disk lies on %q as %s", d.Source.File.File, d.Driver.Type)
			}
		}
	})
}

// FuzzRebuildTrusted searches for a trusted document, of which little is screened out, that
// makes the parser fail.
func FuzzRebuildTrusted(f *testing.F) {
	for _, file := range documents(f) {
		f.Add(read(f, file))
	}
	for _, h := range hostiles() {
		if len(h.doc) < 8<<10 {
			f.Add([]byte(h.doc))
		}
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		_, err := domainxml.Rebuild(doc, domainxml.Options{Disks: layers, Trusted: true})
		var refused *domainxml.RefusedError
		if err != nil && !errors.As(err, &refused) {
			t.Fatalf("%v is not a refusal", err)
		}
	})
}

func isLayer(name, format string) bool {
	for _, l := range layers {
		if l.Name == name && l.Format == format {
			return true
		}
	}
	return false
}
