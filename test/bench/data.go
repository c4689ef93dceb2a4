package main

import (
	"bufio"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
)

const (
	blockSize = 64 << 10 // of what is random or text in turn
	// changedBlock is the unit in which a second version differs.
	changedBlock = 1 << 20
	// changedOneIn is 20: five per cent.
	changedOneIn = 20
)

// generate writes a disk, the same each time: blocks of random bytes, which do
// not compress, and of text, in turn.
func generate(path string, size int64) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriterSize(f, 1<<20)
	chacha := rand.NewChaCha8([32]byte{})
	text := newTextSource(rand.New(chacha))
	block := make([]byte, blockSize)
	for at := int64(0); at < size; at += blockSize {
		if at/blockSize%2 == 0 {
			_, _ = chacha.Read(block) // never fails
		} else {
			text.fill(block)
		}
		if _, err := w.Write(block[:min(blockSize, size-at)]); err != nil {
			return err
		}
	}
	return w.Flush()
}

// A textSource writes words, of which few are common.
type textSource struct {
	rng   *rand.Rand
	words [][]byte
}

func newTextSource(rng *rand.Rand) *textSource {
	t := &textSource{rng: rng, words: make([][]byte, 2048)}
	const letters = "etaoinshrdlucmfwypvbgkqjxz"
	for i := range t.words {
		word := make([]byte, 2+rng.IntN(9))
		for j := range word {
			word[j] = letters[min(rng.IntN(26), rng.IntN(26))]
		}
		t.words[i] = append(word, ' ')
	}
	return t
}

func (t *textSource) fill(block []byte) {
	for n := 0; n < len(block); {
		n += copy(block[n:], t.words[min(t.rng.IntN(2048), t.rng.IntN(2048), t.rng.IntN(2048))])
	}
}

// change copies a disk with every twentieth block made anew.
func change(from, to string) (err error) {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	info, err := in.Stat()
	if err != nil {
		return err
	}
	chacha := rand.NewChaCha8([32]byte{1})
	block := make([]byte, changedBlock)
	for at := int64(0); at+changedBlock <= info.Size(); at += changedBlock * changedOneIn {
		_, _ = chacha.Read(block) // never fails
		if _, err := out.WriteAt(block, at); err != nil {
			return err
		}
	}
	return nil
}
