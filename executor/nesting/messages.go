package nesting

import (
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"gitlab-sardine-executor/internal/rpc"
)

// The messages of the API are those of api/internal/proto/nesting.proto in
// gitlab.com/gitlab-org/fleeting/nesting. They are encoded here because its package, and
// what protoc-gen-go generates, add megabytes to the program.

// An encoder appends fields to a message.
type encoder []byte

func (e encoder) text(n protowire.Number, value string) encoder {
	if value == "" {
		return e
	}
	return e.bytes(n, []byte(value))
}

func (e encoder) bytes(n protowire.Number, value []byte) encoder {
	return protowire.AppendBytes(protowire.AppendTag(e, n, protowire.BytesType), value)
}

// A field is one of a message: its number and type, and a value.
type field struct {
	number protowire.Number
	kind   protowire.Type
	bytes  []byte
	varint uint64
}

// text is the value of a string.
func (f field) text() (string, error) {
	if !utf8.Valid(f.bytes) {
		return "", rpc.Errorf(rpc.InvalidArgument, "field %d of the request is not UTF-8", f.number)
	}
	return string(f.bytes), nil
}

// decode passes the fields of a message to set, in their order. set ignores those that it does not
// know; of those that occur more than once, the last one counts.
func decode(message []byte, set func(field) error) error {
	for len(message) > 0 {
		var f field
		var size int
		f.number, f.kind, size = protowire.ConsumeTag(message)
		if size < 0 {
			return malformed(size)
		}
		message = message[size:]
		switch f.kind {
		case protowire.BytesType:
			f.bytes, size = protowire.ConsumeBytes(message)
		case protowire.VarintType:
			f.varint, size = protowire.ConsumeVarint(message)
		default:
			size = protowire.ConsumeFieldValue(f.number, f.kind, message)
		}
		if size < 0 {
			return malformed(size)
		}
		message = message[size:]
		if err := set(f); err != nil {
			return err
		}
	}
	return nil
}

func malformed(size int) error {
	return rpc.Errorf(rpc.InvalidArgument, "the request is malformed: %v", protowire.ParseError(size))
}

// decodeInit decodes an InitRequest.
func decodeInit(message []byte) (config []byte, err error) {
	err = decode(message, func(f field) error {
		if f.number == 1 && f.kind == protowire.BytesType {
			config = f.bytes
		}
		return nil
	})
	return config, err
}

// decodeCreate decodes a CreateRequest. The slot is nil if there is none.
func decodeCreate(message []byte) (image string, slot *int32, err error) {
	err = decode(message, func(f field) (err error) {
		switch {
		case f.number == 1 && f.kind == protowire.BytesType:
			image, err = f.text()
		case f.number == 2 && f.kind == protowire.VarintType:
			slot = new(int32(f.varint))
		}
		return err
	})
	return image, slot, err
}

// decodeDelete decodes a DeleteRequest.
func decodeDelete(message []byte) (id string, err error) {
	err = decode(message, func(f field) (err error) {
		if f.number == 1 && f.kind == protowire.BytesType {
			id, err = f.text()
		}
		return err
	})
	return id, err
}

// A machine is what a client gets of one, a VirtualMachine.
type machine struct{ id, name, address string }

func (m machine) encode() []byte {
	return encoder{}.text(1, m.id).text(2, m.name).text(3, m.address)
}

// encodeCreate encodes a CreateResponse; replaced is the machine that had the slot, or nil.
func encodeCreate(made machine, replaced *string) []byte {
	e := encoder{}.bytes(1, made.encode())
	if replaced != nil {
		e = e.bytes(2, []byte(*replaced))
	}
	return e
}

// encodeList encodes a ListResponse.
func encodeList(all []machine) []byte {
	var e encoder
	for _, m := range all {
		e = e.bytes(1, m.encode())
	}
	return e
}
