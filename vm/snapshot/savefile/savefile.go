// Package savefile reads and writes the header of libvirt's save files (virsh save). With
// another header, several machines can be restored from one file: libvirt restores a file
// only with the name and the UUID in the header.
//
// The layout is undocumented; it is defined in libvirt's source
// (src/qemu/qemu_saveimage.h). In the byte order of the host:
//
//	16 bytes  "LibvirtQemudSave" ("LibvirtQemudPart" while it is being written)
//	 5 × u32  version, length of the data, was running, compression, offset of
//	          the cookie in the data (0: none)
//	14 × u32  not used
//	data      the domain's XML, NUL, the cookie, NUL, zeros
//
// followed by QEMU's stream. [Read] rejects any other layout with [errLayout]; the caller
// boots a machine instead.
package savefile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	magic   = "LibvirtQemudSave"
	version = 2
	// uncompressed is libvirt's save_image_format "raw".
	uncompressed = 0
	// maxData is the maximum size of XML and cookie, in bytes. libvirt accepts up to 10 MiB
	// of XML from its clients; real XML has some ten kilobytes.
	maxData = 16 << 20
)

// errLayout: the file is not a save file, or one with an unknown layout: of another version of
// libvirt, compressed, or incomplete.
var errLayout = errors.New("not a save file of a known layout")

// A Head is the part of a save file before QEMU's stream.
type Head struct {
	// XML of the domain.
	XML string
	// Cookie is libvirt's additional state of the domain, also XML; empty if there is none.
	Cookie string
	// Running: the domain runs after it was restored, and is not paused.
	Running bool
}

// header is the beginning of the file.
type header struct {
	Magic                                        [len(magic)]byte
	Version, DataLen, WasRunning, Format, Cookie uint32
	Unused                                       [14]uint32
}

// Read reads the head of a save file and leaves r at the beginning of QEMU's stream.
func Read(r io.Reader) (*Head, error) {
	var h header
	if err := binary.Read(r, binary.NativeEndian, &h); err != nil {
		return nil, fmt.Errorf("%w: it ends before its header does: %w", errLayout, err)
	}
	switch {
	case string(h.Magic[:]) != magic:
		return nil, fmt.Errorf("%w: it begins with %q", errLayout, h.Magic)
	case h.Version != version:
		return nil, fmt.Errorf("%w: version %d, known is %d", errLayout, h.Version, version)
	case h.Format != uncompressed:
		return nil, fmt.Errorf("%w: it is compressed (format %d; save_image_format in qemu.conf)", errLayout, h.Format)
	case h.Unused != [14]uint32{}:
		return nil, fmt.Errorf("%w: its header has unknown fields", errLayout)
	case h.DataLen > maxData || h.Cookie >= h.DataLen && h.Cookie > 0:
		return nil, fmt.Errorf("%w: %d bytes of XML, the cookie at %d", errLayout, h.DataLen, h.Cookie)
	}
	data := make([]byte, h.DataLen)
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, fmt.Errorf("%w: it ends before its XML does: %w", errLayout, err)
	}
	head := &Head{Running: h.WasRunning == 1}
	xml := data
	if h.Cookie > 0 {
		xml = data[:h.Cookie]
		if head.Cookie = text(data[h.Cookie:]); head.Cookie == "" {
			return nil, fmt.Errorf("%w: its cookie has no end", errLayout)
		}
	}
	if head.XML = text(xml); head.XML == "" {
		return nil, fmt.Errorf("%w: its XML has no end", errLayout)
	}
	return head, nil
}

// text returns the text before the NUL; empty if there is none.
func text(data []byte) string {
	before, _, found := bytes.Cut(data, []byte{0})
	if !found {
		return ""
	}
	return string(before)
}

// WriteTo writes the head. QEMU's stream must follow.
func (h *Head) WriteTo(w io.Writer) (int64, error) {
	data := append([]byte(h.XML), 0)
	out := header{Version: version, Format: uncompressed}
	copy(out.Magic[:], magic)
	if h.Running {
		out.WasRunning = 1
	}
	if h.Cookie != "" {
		out.Cookie = uint32(len(data))
		data = append(append(data, h.Cookie...), 0)
	}
	out.DataLen = uint32(len(data))
	var text bytes.Buffer
	if err := binary.Write(&text, binary.NativeEndian, out); err != nil {
		return 0, err
	}
	text.Write(data)
	return text.WriteTo(w)
}
