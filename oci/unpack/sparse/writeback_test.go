package sparse

import (
	"slices"
	"testing"
)

// The page cache keeps a bounded part of what was written, and at least the last range.
func TestWritebackIsBounded(t *testing.T) {
	var b Writeback
	const part = 6 << 20
	var dropped []extent
	for i := range int64(10) {
		dropped = append(dropped, b.push(extent{i * part, part})...)
		if b.size > cached {
			t.Errorf("after range %d, %d bytes are in the page cache, more than %d", i, b.size, cached)
		}
	}
	if want := []extent{{0, part}, {part, part}}; len(dropped) != 8 || !slices.Equal(dropped[:2], want) {
		t.Errorf("dropped %v, want eight ranges, the oldest first", dropped)
	}
	if dropped = b.push(extent{100 * part, 2 * cached}); len(dropped) != 2 || len(b.started) != 1 {
		t.Errorf("a large range: dropped %v, kept %v; want only the large one kept", dropped, b.started)
	}
}
