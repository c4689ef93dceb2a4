package arch

import (
	"fmt"
	"strings"
)

const (
	boxHeight  = 26
	charWidth  = 7.3 // of 12 px monospace
	areaMargin = 18
	areaTitle  = 30
	areaGap    = 34
)

// SVG draws the packages: an arrow leads from a package to one that it imports, unless
// another import leads there as well. Between areas there is one arrow for all.
func SVG() []byte {
	d := &drawing{}
	d.add("cmd", 0)
	d.add("executor", 1)
	d.add("vm", 2)
	d.add("oci", 2)
	d.add("internal", 3)
	d.arrange()
	return d.render()
}

// A drawnArea is an area with its packages, at its place.
type drawnArea struct {
	Area
	row           int
	layering      *layering
	x, y          float64
	width, height float64
}

type drawing struct {
	areas         []*drawnArea
	width, height float64
}

func (d *drawing) add(name string, row int) {
	a := &drawnArea{Area: Areas[name], row: row}
	var packages []Package
	for _, p := range Packages {
		if p.area() == name {
			packages = append(packages, p)
		}
	}
	if a.Flat {
		// No arrows: everything may import these.
		a.layering = grid(packages, a.label)
	} else {
		a.layering = layer(packages, func(path string) float64 { return float64(len(a.label(path)))*charWidth + 16 })
	}
	a.width = max(a.layering.width+2*areaMargin, float64(len(a.Title))*charWidth+2*areaMargin)
	a.height = float64(len(a.layering.rows))*rowHeight + areaTitle + areaMargin/2
	d.areas = append(d.areas, a)
}

// label is how a package is called in its area.
func (a *drawnArea) label(path string) string {
	if path == a.Root || a.Root == "" {
		return path
	}
	return strings.TrimPrefix(path, a.Root+"/")
}

// grid has packages in one row.
func grid(packages []Package, label func(string) string) *layering {
	l := &layering{rows: [][]*node{nil}}
	x := 0.0
	for _, p := range packages {
		n := &node{name: p.Path, width: float64(len(label(p.Path)))*charWidth + 16, y: rowHeight / 2}
		n.x = x + n.width/2
		x += n.width + gap
		l.rows[0] = append(l.rows[0], n)
	}
	l.width = max(x-gap, 0)
	return l
}

// arrange places the areas in rows, each in the middle.
func (d *drawing) arrange() {
	rows := map[int][]*drawnArea{}
	last := 0
	for _, a := range d.areas {
		rows[a.row] = append(rows[a.row], a)
		last = max(last, a.row)
	}
	widths := map[int]float64{}
	for r, row := range rows {
		for _, a := range row {
			widths[r] += a.width + areaGap
		}
		widths[r] -= areaGap
		d.width = max(d.width, widths[r])
	}
	y := 10.0
	for r := range last + 1 {
		x, height := (d.width-widths[r])/2+10, 0.0
		for _, a := range rows[r] {
			a.x, a.y = x, y
			x += a.width + areaGap
			height = max(height, a.height)
		}
		for _, a := range rows[r] {
			a.height = height
		}
		y += height + areaGap
	}
	d.width, d.height = d.width+20, y-areaGap+10
}

func (d *drawing) render() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%.0f" viewBox="0 0 %.0f %.0f" font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="12">`+"\n", d.width, d.height, d.width, d.height)
	b.WriteString("<!-- Made by `make architecture` of internal/arch/packages.go. -->\n")
	b.WriteString(`<defs>
<marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="#5b6770"/></marker>
<marker id="big" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="4" markerHeight="4" orient="auto"><path d="M0 0 8 4 0 8z" fill="#9aa5ad"/></marker>
</defs>
<rect width="100%" height="100%" fill="#ffffff"/>
`)
	for _, a := range d.areas {
		fmt.Fprintf(&b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="8" fill="%s" stroke="#c9d1d6"/>`+"\n", a.x, a.y, a.width, a.height, a.Color)
		fmt.Fprintf(&b, `<text x="%.1f" y="%.1f" fill="#37424a" font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="13">%s</text>`+"\n", a.x+12, a.y+20, a.Title)
	}
	d.renderAreaArrows(&b)
	for _, a := range d.areas {
		a.render(&b)
	}
	b.WriteString("</svg>\n")
	return []byte(b.String())
}

// renderAreaArrows draws an arrow from each area to those below it that it imports.
func (d *drawing) renderAreaArrows(b *strings.Builder) {
	imports := areaImports()
	for _, from := range d.areas {
		for _, to := range d.areas {
			if !imports[from.Name][to.Name] || to.row != from.row+1 {
				continue
			}
			left, right := max(from.x, to.x), min(from.x+from.width, to.x+to.width)
			x := (left + right) / 2
			fmt.Fprintf(b, `<path d="M%.1f %.1f V%.1f" stroke="#9aa5ad" stroke-width="5" fill="none" marker-end="url(#big)"/>`+"\n", x, from.y+from.height+2, to.y-2)
		}
	}
}

// areaImports returns which area imports which.
func areaImports() map[string]map[string]bool {
	area := map[string]string{}
	for _, p := range Packages {
		area[p.Path] = p.area()
	}
	imports := map[string]map[string]bool{}
	for _, p := range Packages {
		if imports[p.area()] == nil {
			imports[p.area()] = map[string]bool{}
		}
		for _, to := range strings.Fields(p.Imports) {
			if area[to] != p.area() {
				imports[p.area()][area[to]] = true
			}
		}
	}
	return imports
}

func (a *drawnArea) render(b *strings.Builder) {
	dx, dy := a.x+(a.width-a.layering.width)/2, a.y+areaTitle
	for _, arrow := range a.layering.arrows {
		fmt.Fprintf(b, `<path d="%s" stroke="#5b6770" fill="none" marker-end="url(#head)"/>`+"\n", arrow.path(dx, dy))
	}
	for _, row := range a.layering.rows {
		for _, n := range row {
			if n.name == "" {
				continue
			}
			x, y := n.x+dx-n.width/2, n.y+dy-boxHeight/2
			fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%d" rx="4" fill="#ffffff" stroke="#5b6770"/>`+"\n", x, y, n.width, boxHeight)
			fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="middle" fill="#1c2226">%s</text>`+"\n", n.x+dx, n.y+dy+4, a.label(n.name))
		}
	}
}

// path is a curve from the lower edge of the first box to the upper edge of the last.
func (a arrow) path(dx, dy float64) string {
	var b strings.Builder
	first := a.nodes[0]
	x, y := first.x+dx, first.y+dy+boxHeight/2
	fmt.Fprintf(&b, "M%.1f %.1f", x, y)
	for i, n := range a.nodes[1:] {
		nextX, nextY := n.x+dx, n.y+dy
		bottom := nextY
		if i == len(a.nodes)-2 {
			nextY -= boxHeight / 2
			bottom = nextY
		} else {
			nextY -= boxHeight / 2
			bottom = nextY + boxHeight
		}
		middle := (y + nextY) / 2
		fmt.Fprintf(&b, " C%.1f %.1f %.1f %.1f %.1f %.1f", x, middle, nextX, middle, nextX, nextY)
		if bottom != nextY {
			fmt.Fprintf(&b, " V%.1f", bottom)
		}
		x, y = nextX, bottom
	}
	return b.String()
}
