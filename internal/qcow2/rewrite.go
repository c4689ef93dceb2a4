package qcow2

import (
	"encoding/binary"
	"fmt"
	"io"
)

// File is what [SetBackingFile] needs of a file.
type File interface {
	io.ReaderAt
	io.WriterAt
}

// SetBackingFile makes the QCOW2 file f name another backing file and its
// format; everything else stays as it is, like qemu-img rebase -u. Neither file
// is opened by it. An empty name makes f stand alone.
//
// QEMU takes a name with a colon before its first slash for a URL: write "./a:b".
func SetBackingFile(f File, name, format string) error {
	h, err := ReadHeader(f)
	if err != nil {
		return err
	}
	if len(name) > maxBackingName {
		return fmt.Errorf("backing file name of %d bytes is too long for a qcow2 header", len(name))
	}
	if err := checkName("backing file name", name); err != nil {
		return err
	}
	tail := h.tail(name, format)
	end := int64(h.length) + int64(len(tail))
	nameOffset := end - int64(len(name))
	if end > h.ClusterSize() {
		return fmt.Errorf("backing file name %q does not fit the qcow2 header", name)
	}
	if name == "" {
		nameOffset = 0
	}
	if _, err := f.WriteAt(tail, int64(h.length)); err != nil {
		return fmt.Errorf("writing qcow2 header extensions: %w", err)
	}
	pointer := binary.BigEndian.AppendUint64(nil, uint64(nameOffset))
	pointer = binary.BigEndian.AppendUint32(pointer, uint32(len(name)))
	if _, err := f.WriteAt(pointer, 8); err != nil {
		return fmt.Errorf("writing qcow2 header: %w", err)
	}
	return nil
}

// tail is what follows the fixed part: the extensions, their end mark and the
// name of the backing file.
func (h *Header) tail(name, format string) []byte {
	var tail []byte
	add := func(kind uint32, body []byte) {
		tail = binary.BigEndian.AppendUint32(tail, kind)
		tail = binary.BigEndian.AppendUint32(tail, uint32(len(body)))
		tail = append(tail, body...)
		for len(tail)%8 != 0 {
			tail = append(tail, 0)
		}
	}
	if name != "" && format != "" {
		add(extensionBackingFormat, []byte(format))
	}
	for _, e := range h.extensions {
		if e.kind != extensionBackingFormat {
			add(e.kind, e.bytes)
		}
	}
	add(extensionEnd, nil)
	return append(tail, name...)
}
