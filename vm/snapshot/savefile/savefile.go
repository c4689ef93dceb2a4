// Package savefile reads and writes the head of the files in which libvirt keeps
// a saved domain (virsh save), so that one file can be restored as many machines
// under names of their own: libvirt itself restores a file only under the name
// and the UUID that were saved.
//
// The layout is libvirt's own business and described nowhere but in its source
// (src/qemu/qemu_saveimage.h). In the byte order of the host:
//
//	16 bytes  "LibvirtQemudSave" ("LibvirtQemudPart" while it is being written)
//	 5 × u32  version, length of the data, was running, compression, offset of
//	          the cookie in the data (0: none)
//	14 × u32  not used
//	data      the domain's XML, NUL, the cookie, NUL, zeros
//
// and then QEMU's own stream. [Read] therefore takes nothing on trust: a file that
// differs in anything is an [ErrLayout], and its user boots a machine instead.
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
	// maxData bounds XML and cookie, in bytes. libvirt itself reads up to 10 MiB of XML
	// from its clients; real ones have some ten kilobytes.
	maxData = 16 << 20
)

// ErrLayout: this is no file of a saved domain, or one that this package does not
// know: of another version of libvirt, compressed, or incomplete.
var ErrLayout = errors.New("not a save file of a known layout")

// A Head is all of a save file but QEMU's stream, which follows it.
type Head struct {
	// XML of the domain.
	XML string
	// Cookie is libvirt's own additional knowledge of the running domain, XML as
	// well; empty if there is none.
	Cookie string
	// Running says whether the domain runs once it is restored, or stays paused.
	Running bool
}

// header is what the file begins with.
type header struct {
	Magic                                        [len(magic)]byte
	Version, DataLen, WasRunning, Format, Cookie uint32
	Unused                                       [14]uint32
}

// Read reads the head of a save file and leaves r at the beginning of QEMU's stream.
func Read(r io.Reader) (*Head, error) {
	var h header
	if err := binary.Read(r, binary.NativeEndian, &h); err != nil {
		return nil, fmt.Errorf("%w: it ends before its header does: %w", ErrLayout, err)
	}
	switch {
	case string(h.Magic[:]) != magic:
		return nil, fmt.Errorf("%w: it begins with %q", ErrLayout, h.Magic)
	case h.Version != version:
		return nil, fmt.Errorf("%w: version %d, known is %d", ErrLayout, h.Version, version)
	case h.Format != uncompressed:
		return nil, fmt.Errorf("%w: it is compressed (format %d; save_image_format in qemu.conf)", ErrLayout, h.Format)
	case h.Unused != [14]uint32{}:
		return nil, fmt.Errorf("%w: its header holds more than is known", ErrLayout)
	case h.DataLen > maxData || h.Cookie >= h.DataLen && h.Cookie > 0:
		return nil, fmt.Errorf("%w: %d bytes of XML, the cookie at %d", ErrLayout, h.DataLen, h.Cookie)
	}
	data := make([]byte, h.DataLen)
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, fmt.Errorf("%w: it ends before its XML does: %w", ErrLayout, err)
	}
	head := &Head{Running: h.WasRunning == 1}
	xml := data
	if h.Cookie > 0 {
		xml = data[:h.Cookie]
		if head.Cookie = text(data[h.Cookie:]); head.Cookie == "" {
			return nil, fmt.Errorf("%w: its cookie has no end", ErrLayout)
		}
	}
	if head.XML = text(xml); head.XML == "" {
		return nil, fmt.Errorf("%w: its XML has no end", ErrLayout)
	}
	return head, nil
}

// text is what stands before the NUL; empty if there is none.
func text(data []byte) string {
	before, _, found := bytes.Cut(data, []byte{0})
	if !found {
		return ""
	}
	return string(before)
}

// WriteTo writes the head; QEMU's stream has to follow.
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
