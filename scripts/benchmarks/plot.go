package main

import (
	"encoding/xml"
	"fmt"
	"strings"
)

// A plot is a picture of horizontal bars.
type plot struct {
	File, Title string
	Bars        []bar
}

// A bar is one or more metrics in seconds, one after the other.
type bar struct {
	Label string
	Parts []part
	Peer  bool // of another program
}

type part struct{ Metric, Label string }

var plots = []plot{
	{
		File: "benchmark-stages.svg", Title: "Seconds of a job with an empty script",
		Bars: []bar{
			{"virsh, ssh: by hand", []part{{"Stages/session virsh-create-banner-s", "create, until SSH answers"}, {"Stages/session ssh-true-s", "ssh true"}, {"Stages/session virsh-destroy-s", "destroy"}}, true},
			{"boot", []part{{"Stages/session prepare-s", "prepare"}, {"Stages/session run-s", "run"}, {"Stages/session cleanup-s", "cleanup"}}, false},
			{"memory snapshot", []part{{"Snapshot/session snapshot-s", "prepare"}, {"Stages/session run-s", "run"}, {"Stages/session cleanup-s", "cleanup"}}, false},
			{"idle machine of serve", []part{{"Idle/session idle-s", "prepare"}, {"Stages/session run-s", "run"}, {"Stages/session cleanup-s", "cleanup"}}, false},
		},
	},
	{
		File: "benchmark-pulls.svg", Title: "Seconds from a registry to a disk of 1 GiB",
		Bars: []bar{
			{"skopeo copy, gzip -dc", []part{{"Pull/gzip skopeo-gzip-s", ""}}, true},
			{"gzip layer", []part{{"Pull/gzip pull-s", ""}}, false},
			{"chunked", []part{{"Pull/chunked pull-s", ""}}, false},
		},
	},
}

const (
	plotWidth  = 760
	labelWidth = 190
	barHeight  = 26
	barGap     = 12
	plotTop    = 46
)

// Colours by part; those of other programs are grey.
var (
	ourColours  = []string{"#1f6feb", "#54aeff", "#b6e3ff"}
	peerColours = []string{"#6e7781", "#8c959f", "#d0d7de"}
)

// Draw returns the picture. A bar without a measurement is left out; a picture without any
// is an error.
func (p plot) Draw(r *Report) (string, error) {
	var shown []bar
	longest := 0.0
	for _, b := range p.Bars {
		sum, complete := b.sum(r)
		if !complete {
			continue
		}
		shown, longest = append(shown, b), max(longest, sum)
	}
	if longest == 0 {
		return "", fmt.Errorf("%s: nothing of it was measured", p.File)
	}
	height := plotTop + len(shown)*(barHeight+barGap) + 34
	var out strings.Builder
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="13" role="img" aria-label="%[3]s">`+"\n", plotWidth, height, escape(p.Title))
	fmt.Fprintf(&out, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", plotWidth, height)
	fmt.Fprintf(&out, `<text x="12" y="26" font-size="16" font-weight="bold" fill="#1f2328">%s</text>`+"\n", escape(p.Title))
	scale := float64(plotWidth-labelWidth-70) / longest
	for i, b := range shown {
		b.draw(&out, r, plotTop+i*(barHeight+barGap), scale)
	}
	p.legend(&out, height-14)
	out.WriteString("</svg>\n")
	return out.String(), nil
}

func (b bar) sum(r *Report) (sum float64, complete bool) {
	for _, part := range b.Parts {
		value, measured := r.Metrics[part.Metric]
		if !measured {
			return 0, false
		}
		sum += value
	}
	return sum, true
}

func (b bar) draw(out *strings.Builder, r *Report, y int, scale float64) {
	fmt.Fprintf(out, `<text x="%d" y="%d" text-anchor="end" fill="#1f2328">%s</text>`+"\n", labelWidth-10, y+barHeight-8, escape(b.Label))
	colours := ourColours
	if b.Peer {
		colours = peerColours
	}
	x := float64(labelWidth)
	for i, part := range b.Parts {
		width := r.Metrics[part.Metric] * scale
		fmt.Fprintf(out, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"><title>%s</title></rect>`+"\n",
			x, y, width, barHeight, colours[i], escape(fmt.Sprintf("%s: %s s", part.Label, number(r.Metrics[part.Metric]))))
		x += width
	}
	sum, _ := b.sum(r)
	fmt.Fprintf(out, `<text x="%.1f" y="%d" fill="#1f2328">%s s</text>`+"\n", x+6, y+barHeight-8, number(sum))
}

// legend names the parts of the bars, if they have several.
func (p plot) legend(out *strings.Builder, y int) {
	last := p.Bars[len(p.Bars)-1]
	if len(last.Parts) < 2 {
		return
	}
	for i, part := range last.Parts {
		x := labelWidth + i*110
		fmt.Fprintf(out, `<rect x="%d" y="%d" width="12" height="12" fill="%s"/><text x="%d" y="%d" fill="#59636e">%s</text>`+"\n",
			x, y-10, ourColours[i], x+18, y, escape(part.Label))
	}
}

func escape(text string) string {
	var out strings.Builder
	_ = xml.EscapeText(&out, []byte(text)) // a Builder returns no error
	return out.String()
}
