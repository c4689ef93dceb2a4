package inflate

import (
	"math/bits"
	"sync"
)

// Codes are looked up by the next bits of the stream in a table that is indexed by
// as many bits as most codes have. A longer code leads to a second part of the
// table, which is indexed by the bits that follow.
const (
	litBits  = 11
	distBits = 9
	maxCode  = 15 // bits of the longest code

	numLit  = 286 // symbols that may occur, of 288
	numDist = 30  // of 32

	// The most entries that any code of maxCode bits needs, by zlib's enough.c for
	// 286 symbols with 11 and 30 symbols with 9 bits in the first part.
	litEntries  = 2342
	distEntries = 592
)

type (
	litTable  [litEntries]entry
	distTable [distEntries]entry
	codeTable [1 << 7]entry
)

// An entry says what the next bits of the stream mean.
//
//	bits  0 to 7   bits that the code and what belongs to it take
//	bits  8 to 11  of which the code itself takes so many
//	bits 12 to 15  kind
//	bits 16 to 31  value: a byte, or two; the base of a length or distance; where
//	               the second part of the table begins
type entry uint32

const (
	literal  entry = 1 << 15 // a byte
	two      entry = 1 << 14 // and another one
	special  entry = 1 << 13 // end of block, link, or invalid
	link     entry = 1 << 12 // with special: to a second part, which takes as many more bits as bits 0 to 7 say
	endBlock entry = 1 << 14 // with special
)

func (e entry) total() uint { return uint(e & 0xff) }
func (e entry) code() uint  { return uint(e >> 8 & 0xf) }
func (e entry) value() int  { return int(e >> 16) }

// extra is what the bits behind the code add to the value; next are the bits of
// the stream with those of the code.
func (e entry) extra(next uint64) int {
	return int(next & (1<<e.total() - 1) >> e.code())
}

// litSymbols, distSymbols and codeSymbols are the entries of the symbols as far as they do
// not depend on their codes: the extra bits in bits 0 to 7, and the value.
// RFC 1951, 3.2.5.
var (
	litSymbols  = makeLitSymbols()
	distSymbols = makeDistSymbols()
	codeSymbols = makeCodeSymbols()
)

func makeLitSymbols() (symbols [numLit]entry) {
	for i := range 256 {
		symbols[i] = entry(i)<<16 | literal
	}
	symbols[256] = special | endBlock
	base := 3
	for i := 257; i < 285; i++ {
		extra := max(0, (i-261)/4)
		symbols[i] = entry(base)<<16 | entry(extra)
		base += 1 << extra
	}
	symbols[285] = entry(maxMatch) << 16
	return symbols
}

func makeDistSymbols() (symbols [numDist]entry) {
	base := 1
	for i := range symbols {
		extra := max(0, i/2-1)
		symbols[i] = entry(base)<<16 | entry(extra)
		base += 1 << extra
	}
	return symbols
}

func makeCodeSymbols() (symbols [19]entry) {
	for i := range symbols {
		symbols[i] = entry(i) << 16
	}
	return symbols
}

// build makes a table for the canonical code in which symbol i has lengths[i] bits,
// 0 if it does not occur. It is false if there is no such code: zlib's rule is that
// a code uses up all bits, or has one symbol of one bit, or none at all.
func build(table []entry, first uint, lengths []uint8, symbols []entry) bool {
	var count [maxCode + 1]int
	for _, n := range lengths {
		count[n]++
	}
	longest := maxCode
	for longest > 0 && count[longest] == 0 {
		longest--
	}
	free := 1
	for n := 1; n <= maxCode; n++ {
		free = free<<1 - count[n]
		if free < 0 {
			return false
		}
	}
	if free > 0 {
		if longest > 1 {
			return false
		}
		for i := range 1 << first {
			table[i] = special // no code
		}
	}
	var next [maxCode + 2]uint32
	for n := 1; n <= maxCode; n++ {
		next[n+1] = (next[n] + uint32(count[n])) << 1
	}
	b := builder{table: table, first: first, end: 1 << first, remaining: count}
	// By length, and so by code: those of one second part follow each other.
	var order [288]uint16
	var start [maxCode + 2]int
	for n := 1; n <= maxCode; n++ {
		start[n+1] = start[n] + count[n]
	}
	for i, n := range lengths {
		if n > 0 {
			order[start[n]] = uint16(i)
			start[n]++
		}
	}
	for _, i := range order[:start[maxCode]] {
		n := lengths[i]
		if !b.add(next[n], uint(n), symbols[i]) {
			return false
		}
		next[n]++
	}
	return true
}

type builder struct {
	table     []entry
	first     uint // bits of the first part's index
	end       int  // of the entries in use
	remaining [maxCode + 1]int

	prefix uint32 // bits that lead to the second part at hand
	part   int    // where that begins; 0: none
	width  uint   // bits of its index
}

// add adds a symbol, whose code has n bits. Symbols come in the order of their
// codes. It is false if the table is full, which it is not by its size.
func (b *builder) add(code uint32, n uint, symbol entry) bool {
	reversed := bits.Reverse32(code) >> (32 - n)
	e := symbol + entry(n) | entry(n)<<8
	if n <= b.first {
		for i := reversed; i < 1<<b.first; i += 1 << n {
			b.table[i] = e
		}
		b.remaining[n]--
		return true
	}
	prefix := reversed & (1<<b.first - 1)
	if (b.part == 0 || prefix != b.prefix) && !b.openPart(prefix, n) {
		return false
	}
	// The bits of the first part are dropped by then.
	rest := n - b.first
	e = symbol + entry(rest) | entry(rest)<<8
	for i := reversed >> b.first; i < 1<<b.width; i += 1 << rest {
		b.table[b.part+int(i)] = e
	}
	b.remaining[n]--
	return true
}

// openPart begins the second part for codes that begin with prefix, of which the
// first has n bits.
func (b *builder) openPart(prefix uint32, n uint) bool {
	// As wide as the codes that are left fill it.
	width := n - b.first
	for room := 1<<width - b.remaining[n]; room > 0 && b.first+width < maxCode; {
		width++
		room = room<<1 - b.remaining[b.first+width]
	}
	b.prefix, b.part, b.width = prefix, b.end, width
	b.end += 1 << width
	b.table[prefix] = entry(b.part)<<16 | special | link | entry(b.first)<<8 | entry(width)
	return b.end <= len(b.table)
}

// pair joins two literals whose codes fit into one index.
func (t *litTable) pair() {
	// From the end, so that the second of a pair is still a single one: its index is
	// the smaller, or the same.
	for i := 1<<litBits - 1; i >= 0; i-- {
		e := t[i]
		if e&literal == 0 {
			continue
		}
		second := t[i>>e.code()]
		if second&literal == 0 || second&two != 0 || e.code()+second.code() > litBits {
			continue
		}
		n := entry(e.code() + second.code())
		t[i] = literal | two | n<<8 | n | e&0xff0000 | second&0xff0000<<8
	}
}

// fixed is the code of blocks of kind 1 (RFC 1951, 3.2.6).
var fixed = sync.OnceValues(func() (*litTable, *distTable) {
	var lit litTable
	var dist distTable
	var lengths [288]uint8
	for i := range lengths {
		switch {
		case i < 144:
			lengths[i] = 8
		case i < 256:
			lengths[i] = 9
		case i < 280:
			lengths[i] = 7
		default:
			lengths[i] = 8
		}
	}
	symbols := append(litSymbols[:], special, special) // have codes, and must not occur
	build(lit[:], litBits, lengths[:], symbols)
	lit.pair()
	var five [32]uint8
	for i := range five {
		five[i] = 5
	}
	build(dist[:], distBits, five[:], append(distSymbols[:], special, special))
	return &lit, &dist
})
