package arch

import (
	"cmp"
	"slices"
	"strings"
)

// A node is a box, or a bend of an arrow that passes a row.
type node struct {
	name  string // empty for a bend
	width float64
	x, y  float64 // of the center

	above, below []*node
}

// An arrow leads from box to box, through bends.
type arrow struct{ nodes []*node }

// A layering has packages in rows, an importing package above those that it imports.
type layering struct {
	rows   [][]*node
	arrows []arrow
	width  float64
}

const (
	bendWidth = 10
	gap       = 16 // between two boxes
)

// layer arranges packages by the imports among them.
func layer(packages []Package, boxWidth func(name string) float64) *layering {
	imports := importsAmong(packages)
	rank := map[string]int{}
	var rankOf func(name string) int
	importers := map[string][]string{}
	for _, p := range packages {
		for _, to := range imports[p.Path] {
			importers[to] = append(importers[to], p.Path)
		}
	}
	rankOf = func(name string) int {
		if r, ok := rank[name]; ok {
			return r
		}
		r := 0
		for _, from := range importers[name] {
			r = max(r, rankOf(from)+1)
		}
		rank[name] = r
		return r
	}
	l := &layering{}
	boxes := map[string]*node{}
	for _, p := range packages {
		r := rankOf(p.Path)
		for len(l.rows) <= r {
			l.rows = append(l.rows, nil)
		}
		boxes[p.Path] = &node{name: p.Path, width: boxWidth(p.Path)}
		l.rows[r] = append(l.rows[r], boxes[p.Path])
	}
	for _, p := range packages {
		for _, to := range reduced(p.Path, imports) {
			l.connect(boxes[p.Path], boxes[to], rank[p.Path], rank[to])
		}
	}
	l.order()
	l.place()
	return l
}

// importsAmong returns the imports of packages that are among them.
func importsAmong(packages []Package) map[string][]string {
	among := map[string]bool{}
	for _, p := range packages {
		among[p.Path] = true
	}
	imports := map[string][]string{}
	for _, p := range packages {
		for _, to := range strings.Fields(p.Imports) {
			if among[to] {
				imports[p.Path] = append(imports[p.Path], to)
			}
		}
	}
	return imports
}

// reduced returns the imports of a package without those that another of its imports
// leads to as well.
func reduced(from string, imports map[string][]string) []string {
	reachable := map[string]bool{}
	var visit func(name string)
	visit = func(name string) {
		for _, to := range imports[name] {
			if !reachable[to] {
				reachable[to] = true
				visit(to)
			}
		}
	}
	for _, to := range imports[from] {
		visit(to)
	}
	var left []string
	for _, to := range imports[from] {
		if !reachable[to] {
			left = append(left, to)
		}
	}
	return left
}

// connect adds an arrow, with a bend in each row that it passes.
func (l *layering) connect(from, to *node, fromRow, toRow int) {
	a := arrow{nodes: []*node{from}}
	last := from
	for row := fromRow + 1; row < toRow; row++ {
		bend := &node{width: bendWidth}
		l.rows[row] = append(l.rows[row], bend)
		last.below, bend.above = append(last.below, bend), append(bend.above, last)
		a.nodes = append(a.nodes, bend)
		last = bend
	}
	last.below, to.above = append(last.below, to), append(to.above, last)
	a.nodes = append(a.nodes, to)
	l.arrows = append(l.arrows, a)
}

// order sorts the rows by the barycenter heuristic, keeps the best of several sweeps,
// and swaps neighbors while that removes crossings.
func (l *layering) order() {
	best, fewest := l.snapshot(), l.crossings()
	for sweep := range 40 {
		if sweep%2 == 0 {
			for i := 1; i < len(l.rows); i++ {
				sortByNeighbors(l.rows[i], l.rows[i-1], func(n *node) []*node { return n.above })
			}
		} else {
			for i := len(l.rows) - 2; i >= 0; i-- {
				sortByNeighbors(l.rows[i], l.rows[i+1], func(n *node) []*node { return n.below })
			}
		}
		l.swapNeighbors()
		if n := l.crossings(); n < fewest {
			best, fewest = l.snapshot(), n
		}
	}
	l.rows = best
}

func (l *layering) snapshot() [][]*node {
	rows := make([][]*node, len(l.rows))
	for i, row := range l.rows {
		rows[i] = slices.Clone(row)
	}
	return rows
}

func sortByNeighbors(row, fixed []*node, neighbors func(*node) []*node) {
	at := positions(fixed)
	center := map[*node]float64{}
	for i, n := range row {
		center[n] = float64(i)
		if list := neighbors(n); len(list) > 0 {
			sum := 0
			for _, other := range list {
				sum += at[other]
			}
			center[n] = float64(sum) / float64(len(list)) * float64(len(row)) / float64(max(len(fixed), 1))
		}
	}
	slices.SortStableFunc(row, func(a, b *node) int { return cmp.Compare(center[a], center[b]) })
}

func positions(row []*node) map[*node]int {
	at := map[*node]int{}
	for i, n := range row {
		at[n] = i
	}
	return at
}

func (l *layering) swapNeighbors() {
	for range 4 {
		for _, row := range l.rows {
			for i := 0; i+1 < len(row); i++ {
				before := l.crossings()
				row[i], row[i+1] = row[i+1], row[i]
				if l.crossings() >= before {
					row[i], row[i+1] = row[i+1], row[i]
				}
			}
		}
	}
}

func (l *layering) crossings() int {
	total := 0
	for i := 0; i+1 < len(l.rows); i++ {
		at := positions(l.rows[i+1])
		var ends []int
		for _, n := range l.rows[i] {
			own := make([]int, 0, len(n.below))
			for _, to := range n.below {
				own = append(own, at[to])
			}
			slices.Sort(own)
			ends = append(ends, own...)
		}
		for j, a := range ends {
			for _, b := range ends[j+1:] {
				if b < a {
					total++
				}
			}
		}
	}
	return total
}

const rowHeight = 62

// place gives every node its coordinates: near its neighbors, in the order of its row.
func (l *layering) place() {
	for i, row := range l.rows {
		x := 0.0
		for _, n := range row {
			n.x, n.y = x+n.width/2, float64(i)*rowHeight+rowHeight/2
			x += n.width + gap
		}
		l.width = max(l.width, x-gap)
	}
	for range 30 {
		for _, row := range l.rows {
			l.shift(row)
		}
	}
}

// shift moves the nodes of a row toward the mean of their neighbors, as far as the
// order and the width allow.
func (l *layering) shift(row []*node) {
	want := make([]float64, len(row))
	for i, n := range row {
		want[i] = n.x
		if near := slices.Concat(n.above, n.below); len(near) > 0 {
			sum := 0.0
			for _, other := range near {
				sum += other.x
			}
			want[i] = sum / float64(len(near))
		}
	}
	left := 0.0
	for i, n := range row { // not before what stands to the left
		n.x = max(want[i], left+n.width/2)
		left = n.x + n.width/2 + gap
	}
	right := l.width
	for _, n := range slices.Backward(row) {
		n.x = min(n.x, right-n.width/2)
		right = n.x - n.width/2 - gap
	}
}
