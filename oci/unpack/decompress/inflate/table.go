package inflate

import (
	"math/bits"
	"sync"
)

// Codes are looked up in a table, which is indexed by the next bits of the stream: as many as
// most codes have. For longer codes, the entry refers to a second part of the table, which is
// indexed by the following bits.
const (
	litBits  = 11
	distBits = 9
	maxCode  = 15 // bits of the longest code

	numLit  = 286 // valid symbols, of 288
	numDist = 30  // of 32

	// The maximum number of entries for any code of maxCode bits, from zlib's enough.c for
	// 286 symbols with 11 and 30 symbols with 9 bits in the first part.
	litEntries  = 2342
	distEntries = 592
)

type (
	litTable  [litEntries]entry
	distTable [distEntries]entry
	codeTable [1 << 7]entry
)

// An entry is the meaning of the next bits of the stream.
//
//	bits  0 to 7   number of bits of the code and its extra bits
//	bits  8 to 11  number of bits of the code
//	bits 12 to 15  kind
//	bits 16 to 31  value: one or two bytes, the base of a length or distance, or the
//	               index of the second part of the table
type entry uint32

const (
	literal  entry = 1 << 15 // a byte
	two      entry = 1 << 14 // and another one
	special  entry = 1 << 13 // end of block, link, or invalid
	link     entry = 1 << 12 // with special: to a second part, indexed by as many bits as bits 0 to 7 say
	endBlock entry = 1 << 14 // with special
)

func (e entry) total() uint { return uint(e & 0xff) }
func (e entry) code() uint  { return uint(e >> 8 & 0xf) }
func (e entry) value() int  { return int(e >> 16) }

// extra returns the value of the extra bits after the code. next has the bits of the stream
// from the code on.
func (e entry) extra(next uint64) int {
	return int(next & (1<<e.total() - 1) >> e.code())
}

// litSymbols, distSymbols and codeSymbols are the entries of the symbols without their codes:
// the number of extra bits in bits 0 to 7, and the value (RFC 1951, 3.2.5).
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

// build fills a table for the canonical code in which symbol i has lengths[i] bits; 0 means
// that the symbol has no code. It returns false for an invalid code. Like in zlib, a valid
// code is complete, or has one symbol of one bit, or none.
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
	// Sorted by length, and so by code: those of one second part are consecutive.
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
	first     uint // bits of the index of the first part
	end       int  // of the entries in use
	remaining [maxCode + 1]int

	prefix uint32 // bits before the current second part
	part   int    // its index; 0 if there is none
	width  uint   // bits of its index
}

// add adds a symbol with a code of n bits. Symbols are added in the order of their codes. It
// returns false if the table is full, which its size makes impossible.
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
	// Without the bits of the first part.
	rest := n - b.first
	e = symbol + entry(rest) | entry(rest)<<8
	for i := reversed >> b.first; i < 1<<b.width; i += 1 << rest {
		b.table[b.part+int(i)] = e
	}
	b.remaining[n]--
	return true
}

// openPart starts the second part for codes that begin with prefix; the first of them has n
// bits.
func (b *builder) openPart(prefix uint32, n uint) bool {
	// As wide as the remaining codes require.
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

// pair combines two literals if their codes fit into one index.
func (t *litTable) pair() {
	// Start at the end, so that the second of a pair is still single: its index is smaller
	// or equal.
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
	symbols := append(litSymbols[:], special, special) // they have codes, but are invalid
	build(lit[:], litBits, lengths[:], symbols)
	lit.pair()
	var five [32]uint8
	for i := range five {
		five[i] = 5
	}
	build(dist[:], distBits, five[:], append(distSymbols[:], special, special))
	return &lit, &dist
})
