package inflate

import "encoding/binary"

// codeOrder is the order of the lengths of the code-length code (RFC 1951, 3.2.7).
var codeOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// dynamicHeader reads the codes of a block that brings its own (RFC 1951, 3.2.7).
func (r *Reader) dynamicHeader() error {
	if err := r.need(14); err != nil {
		return err
	}
	nlit, ndist, ncode := r.take(5)+257, r.take(5)+1, r.take(4)+4
	if nlit > numLit || ndist > numDist {
		return r.corrupt("%d literals and lengths and %d distances, at most %d and %d can be", nlit, ndist, numLit, numDist)
	}
	var codeLengths [19]uint8
	for _, i := range codeOrder[:ncode] {
		if err := r.need(3); err != nil {
			return err
		}
		codeLengths[i] = uint8(r.take(3))
	}
	if !buildCode(&r.own.code, codeLengths[:]) {
		return r.corrupt("no such code of code lengths")
	}
	var lengths [numLit + numDist]uint8
	if err := r.codeLengths(lengths[:nlit+ndist]); err != nil {
		return err
	}
	r.lit, r.dist = &r.own.lit, &r.own.dist
	switch {
	case lengths[256] == 0:
		return r.corrupt("the end of the block has no code")
	case !build(r.lit[:], litBits, lengths[:nlit], litSymbols[:]):
		return r.corrupt("no such code of literals and lengths")
	case !build(r.dist[:], distBits, lengths[nlit:nlit+ndist], distSymbols[:]):
		return r.corrupt("no such code of distances")
	}
	r.lit.pair()
	return nil
}

// buildCode makes the table of the code-length code, which must be complete.
func buildCode(table *codeTable, lengths []uint8) bool {
	free := 1 << 7
	for _, n := range lengths {
		if n > 0 {
			free -= 1 << (7 - n)
		}
	}
	return free == 0 && build(table[:], 7, lengths, codeSymbols[:])
}

// codeLengths reads the lengths of codes, which are compressed themselves.
func (r *Reader) codeLengths(lengths []uint8) error {
	for i := 0; i < len(lengths); {
		e, err := r.symbol(r.own.code[:], 7)
		if err != nil {
			return err
		}
		if e.value() < 16 {
			lengths[i] = uint8(e.value())
			i++
			continue
		}
		repeated, base, extra := uint8(0), 3, uint(3)
		switch e.value() {
		case 16:
			if i == 0 {
				return r.corrupt("a first code length that repeats the one before")
			}
			repeated, extra = lengths[i-1], 2
		case 18:
			base, extra = 11, 7
		}
		if err := r.need(extra); err != nil {
			return err
		}
		n := base + r.take(extra)
		if n > len(lengths)-i {
			return r.corrupt("code lengths of more symbols than there are")
		}
		for range n {
			lengths[i] = repeated
			i++
		}
	}
	return nil
}

// symbol reads one symbol bit by bit as far as it must, for there may be no more
// bits in the stream than the symbol has. It drops the code, and not what belongs
// to it.
func (r *Reader) symbol(table []entry, first uint) (entry, error) {
	if r.nbits < maxCode {
		r.refill()
	}
	for {
		e := table[r.bits&(1<<first-1)]
		have := r.nbits
		if e&(special|link) == special|link && have >= first {
			e = table[e.value()+int(r.bits>>first&(1<<e.total()-1))]
			have -= first
			if have >= e.code() {
				r.drop(first + e.code())
				return e, nil
			}
		} else if e&(special|link) != special|link && have >= e.code() {
			r.drop(e.code())
			return e, nil
		}
		if err := r.need(r.nbits + 1); err != nil {
			return 0, err
		}
	}
}

// huffman decompresses a block with codes until it ends or the buffer is full.
func (r *Reader) huffman() error {
	for r.to < limit {
		var end bool
		var wrong string
		var err error
		if len(r.in)-r.at >= fastInput {
			end, wrong = r.fast()
		} else {
			end, wrong, err = r.slow()
		}
		switch {
		case err != nil:
			return err
		case wrong != "":
			return r.corrupt("%s", wrong)
		case end:
			return r.endBlock()
		}
	}
	return nil
}

// What can be wrong within a block.
const (
	noSuchLit  = "no such literal or length"
	noSuchDist = "no such distance"
	tooFar     = "a match that begins before the stream"
)

// fastInput is how many bytes of input [Reader.fast] may look at for one match.
const fastInput = 16

// fast decompresses as long as it need not look where input and buffer end. All
// that it works with is in local variables.
func (r *Reader) fast() (end bool, wrong string) {
	in, out, lit, dist := r.in, &r.out, r.lit, r.dist
	at, to, bits, nbits := r.at, r.to, r.bits, r.nbits
	defer func() { r.at, r.to, r.bits, r.nbits = at, to, bits, nbits }()
	for at+fastInput <= len(in) && to < limit {
		// Whole bytes, so that from 56 to 63 bits are there; those above are set, too,
		// to what they will be.
		bits |= binary.LittleEndian.Uint64(in[at:]) << (nbits & 63)
		at += int(63-nbits) >> 3
		nbits |= 56
		// Of them three entries of literals take 33 at most, and a length 20.
		e := lit[bits&(1<<litBits-1)]
		for range 3 {
			if e&literal == 0 {
				break
			}
			bits >>= e.total() & 63
			nbits -= e.total()
			binary.LittleEndian.PutUint16(out[to:], uint16(e>>16))
			to += 1 + int(e>>14&1)
			e = lit[bits&(1<<litBits-1)]
		}
		if e&literal != 0 {
			continue
		}
		if e&(special|link) == special|link {
			e = lit[e.value()+int(bits>>litBits&(1<<e.total()-1))]
			bits >>= litBits
			nbits -= litBits
			if e&literal != 0 {
				bits >>= e.total() & 63
				nbits -= e.total()
				out[to] = byte(e >> 16)
				to++
				continue
			}
		}
		if e&special != 0 {
			bits >>= e.code()
			nbits -= e.code()
			if e&endBlock == 0 {
				return false, noSuchLit
			}
			return true, ""
		}
		length := e.value() + e.extra(bits)
		bits >>= e.total() & 63
		nbits -= e.total()

		bits |= binary.LittleEndian.Uint64(in[at:]) << (nbits & 63)
		at += int(63-nbits) >> 3
		nbits |= 56
		e = dist[bits&(1<<distBits-1)]
		if e&(special|link) == special|link {
			e = dist[e.value()+int(bits>>distBits&(1<<e.total()-1))]
			bits >>= distBits
			nbits -= distBits
		}
		if e&special != 0 {
			return false, noSuchDist
		}
		back := e.value() + e.extra(bits)
		bits >>= e.total() & 63
		nbits -= e.total()
		if back > to {
			return false, tooFar
		}
		copyMatch(out, to, back, length)
		to += length
	}
	return false, ""
}

// copyMatch writes length bytes at out[to:] that stand back bytes before. It may
// write seven more.
func copyMatch(out *[limit + slack]byte, to, back, length int) {
	from := to - back
	switch {
	case back >= 8:
		for n := 0; n < length; n += 8 {
			binary.LittleEndian.PutUint64(out[to+n:], binary.LittleEndian.Uint64(out[from+n:]))
		}
	case length <= 8:
		for n := range length {
			out[to+n] = out[from+n]
		}
	default:
		// What is there is repeated, and so doubles.
		for n := 0; n < length; {
			n += copy(out[to+n:to+length], out[from:to+n])
		}
	}
}

// slow decompresses one symbol where the buffered input ends.
func (r *Reader) slow() (end bool, wrong string, err error) {
	e, err := r.symbol(r.lit[:], litBits)
	if err != nil {
		return false, "", err
	}
	switch {
	case e&literal != 0:
		r.out[r.to] = byte(e >> 16)
		r.to++
		if e&two != 0 {
			r.out[r.to] = byte(e >> 24)
			r.to++
		}
		return false, "", nil
	case e&special != 0:
		if e&endBlock == 0 {
			return false, noSuchLit, nil
		}
		return true, "", nil
	}
	length, err := r.slowValue(e)
	if err != nil {
		return false, "", err
	}
	if e, err = r.symbol(r.dist[:], distBits); err != nil {
		return false, "", err
	}
	if e&special != 0 {
		return false, noSuchDist, nil
	}
	dist, err := r.slowValue(e)
	if err != nil {
		return false, "", err
	}
	if dist > r.to {
		return false, tooFar, nil
	}
	copyMatch(&r.out, r.to, dist, length)
	r.to += length
	return false, "", nil
}

// slowValue is the value of a length or distance whose code is dropped.
func (r *Reader) slowValue(e entry) (int, error) {
	extra := e.total() - e.code()
	if err := r.need(extra); err != nil {
		return 0, err
	}
	return e.value() + r.take(extra), nil
}
