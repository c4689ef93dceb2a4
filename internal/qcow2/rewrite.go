package qcow2

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
)

// A File is the part of os.File that [SetBackingFile] uses.
type File interface {
	io.ReaderAt
	io.WriterAt
}

// SetBackingFile changes the name and format of the backing file in the header of f, like
// qemu-img rebase -u. It does not open the backing file. An empty name removes it.
//
// QEMU interprets a name with a colon before the first slash as a URL: use "./a:b".
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
	return h.write(f, name, format)
}

// DropBitmaps removes the bitmaps from the header of the QCOW2 file f. Their clusters stay
// allocated. Bitmaps are only useful for backups of this file, and QEMU does not open a disk
// with invalid ones.
func DropBitmaps(f File) error {
	h, err := ReadHeader(f)
	if err != nil || !h.Bitmaps() {
		return err
	}
	h.extensions = slices.DeleteFunc(h.extensions, func(e extension) bool { return e.kind == extensionBitmaps })
	if h.Version >= 3 {
		autoclear := binary.BigEndian.AppendUint64(nil, h.Autoclear&^autoclearBitmaps)
		if _, err := f.WriteAt(autoclear, autoclearOffset); err != nil {
			return fmt.Errorf("writing qcow2 header: %w", err)
		}
	}
	return h.write(f, h.BackingFile, h.BackingFormat)
}

// autoclearOffset is the offset of the autoclear feature bits in a header.
const autoclearOffset = 88

// write writes the part of the header after the fixed part.
func (h *Header) write(f File, name, format string) error {
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

// tail returns the part after the fixed part: the extensions, their end marker, and the name
// of the backing file.
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
