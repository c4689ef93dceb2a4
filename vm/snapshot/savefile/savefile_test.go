package savefile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
)

// raw is a save file as written by libvirt, with zeros after the cookie.
func raw(change func(*header), data string, stream string) []byte {
	h := header{Version: 2, DataLen: uint32(len(data)), WasRunning: 1}
	copy(h.Magic[:], magic)
	if change != nil {
		change(&h)
	}
	var file bytes.Buffer
	binary.Write(&file, binary.NativeEndian, h)
	file.WriteString(data + stream)
	return file.Bytes()
}

const libvirts = "<domain/>\x00<cookie/>\x00\x00\x00\x00"

func withCookie(h *header) { h.Cookie = 10 }

func TestRead(t *testing.T) {
	r := bytes.NewReader(raw(withCookie, libvirts, "QEVM"))
	head, err := Read(r)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Head{XML: "<domain/>", Cookie: "<cookie/>", Running: true}); *head != want {
		t.Errorf("got %+v, want %+v", *head, want)
	}
	if rest, _ := io.ReadAll(r); string(rest) != "QEVM" {
		t.Errorf("QEMU's stream is %q", rest)
	}
}

// A head that was written can be read again, with and without a cookie.
func TestWriteTo(t *testing.T) {
	for _, head := range []Head{{XML: "<domain/>", Cookie: "<cookie/>", Running: true}, {XML: "<domain/>"}} {
		var file bytes.Buffer
		if _, err := head.WriteTo(&file); err != nil {
			t.Fatal(err)
		}
		file.WriteString("QEVM")
		again, err := Read(&file)
		if err != nil || *again != head {
			t.Errorf("%+v became %+v, %v", head, again, err)
		}
		if file.String() != "QEVM" {
			t.Errorf("QEMU's stream became %q", file.String())
		}
	}
}

// Unknown layouts are rejected.
func TestReadRefuses(t *testing.T) {
	for name, file := range map[string][]byte{
		"empty":            nil,
		"cut header":       raw(nil, libvirts, "")[:50],
		"cut data":         raw(withCookie, libvirts, "")[:100],
		"half written":     raw(func(h *header) { copy(h.Magic[:], "LibvirtQemudPart") }, libvirts, ""),
		"another file":     []byte(strings.Repeat("QFI\xfb", 100)),
		"version":          raw(func(h *header) { h.Version = 3 }, libvirts, ""),
		"other byte order": raw(func(h *header) { h.Version = 2 << 24 }, libvirts, ""),
		"compressed":       raw(func(h *header) { h.Format = 1 }, libvirts, ""),
		"unknown field":    raw(func(h *header) { h.Unused[3] = 1 }, libvirts, ""),
		"huge data":        raw(func(h *header) { h.DataLen = 1 << 31 }, libvirts, ""),
		"cookie outside":   raw(func(h *header) { h.Cookie = 4096 }, libvirts, ""),
		"no end of XML":    raw(nil, "<domain/>", ""),
		"no end of cookie": raw(withCookie, "<domain/>\x00<cookie/>", ""),
		"no data":          raw(nil, "", ""),
	} {
		if _, err := Read(bytes.NewReader(file)); !errors.Is(err, errLayout) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(raw(withCookie, libvirts, "QEVM"))
	f.Add(raw(nil, "<domain/>\x00", "QEVM"))
	f.Fuzz(func(t *testing.T, file []byte) {
		head, err := Read(bytes.NewReader(file))
		if err != nil {
			return
		}
		var out bytes.Buffer
		if _, err := head.WriteTo(&out); err != nil {
			t.Fatal(err)
		}
		if again, err := Read(&out); err != nil || *again != *head {
			t.Errorf("%+v became %+v, %v", head, again, err)
		}
	})
}
