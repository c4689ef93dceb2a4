package metrics

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// The kinds of metrics.
const (
	counter   = "counter"
	gauge     = "gauge"
	histogram = "histogram"
)

// families are the metrics of a file, by name. Text is that of Prometheus' format:
// https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format.
//
// Only what this program writes is read. The parser of prometheus/common, which reads any file,
// brings Protocol Buffers with it, and these are a twelfth of the program.
type families map[string]*family

// A family is the metrics of one name.
type family struct {
	help, kind string   // the help as the file has it
	series     []string // in the order of the file: NAME{LABEL="VALUE",…}
	values     map[string]float64
}

// family returns the family with that name, and adds it if necessary.
func (f families) family(name, kind string) *family {
	known := f[name]
	if known == nil || known.kind != kind {
		known = &family{help: metricHelp[name], kind: kind, values: map[string]float64{}}
		f[name] = known
	}
	return known
}

func (f *family) set(series string, v float64) {
	if _, ok := f.values[series]; !ok {
		f.series = append(f.series, series)
	}
	f.values[series] = v
}

func (f *family) add(series string, n float64) { f.set(series, f.values[series]+n) }

var escapeLabel = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

// series is the name of a series with its labels, as the file has it.
func series(name string, labels ...string) string {
	var text strings.Builder
	text.WriteString(name)
	separator := "{"
	for pair := range slices.Chunk(labels, 2) {
		value := escapeLabel.Replace(strings.ToValidUTF8(pair[1], string(utf8.RuneError)))
		fmt.Fprintf(&text, `%s%s="%s"`, separator, pair[0], value)
		separator = ","
	}
	if len(labels) > 0 {
		text.WriteByte('}')
	}
	return text.String()
}

func format(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }

func (f families) text() []byte {
	var text bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(f)) {
		fmt.Fprintf(&text, "# HELP %s %s\n# TYPE %s %s\n", name, f[name].help, name, f[name].kind)
		for _, series := range f[name].series {
			fmt.Fprintf(&text, "%s %s\n", series, format(f[name].values[series]))
		}
	}
	return text.Bytes()
}

// readFamilies reads a file. A damaged file starts empty: counters may restart at any
// time.
func readFamilies(path string) (families, error) {
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f := parse(string(text))
	if f == nil {
		return families{}, nil
	}
	return f, nil
}

// parse returns nil if the text is not one that text returns.
func parse(text string) families {
	if !utf8.ValidString(text) || text != "" && !strings.HasSuffix(text, "\n") {
		return nil
	}
	p := parser{found: families{}}
	for line := range strings.Lines(text) {
		if !p.line(strings.TrimSuffix(line, "\n")) {
			return nil
		}
	}
	if p.last != nil && p.last.kind == "" {
		return nil
	}
	return p.found
}

// A parser reads lines: for each family its help, its kind, and its series.
type parser struct {
	found families
	name  string  // of the last family
	last  *family // nil: none
}

// line returns false if the line does not belong there.
func (p *parser) line(line string) bool {
	if text, ok := strings.CutPrefix(line, "# HELP "); ok {
		name, help, _ := strings.Cut(text, " ")
		if !isName(name) || p.found[name] != nil || p.last != nil && p.last.kind == "" {
			return false
		}
		p.name, p.last = name, &family{help: help, values: map[string]float64{}}
		p.found[name] = p.last
		return true
	}
	if p.last == nil {
		return false
	}
	if kind, ok := strings.CutPrefix(line, "# TYPE "+p.name+" "); ok {
		ok = p.last.kind == "" && (kind == counter || kind == gauge || kind == histogram)
		p.last.kind = kind
		return ok
	}
	space := strings.LastIndexByte(line, ' ')
	return space > 0 && p.series(line[:space], line[space+1:])
}

func (p *parser) series(series, value string) bool {
	of, ok := nameOf(series)
	suffix, belongs := strings.CutPrefix(of, p.name)
	switch p.last.kind {
	case histogram:
		belongs = belongs && (suffix == "_bucket" || suffix == "_sum" || suffix == "_count")
	case counter, gauge:
		belongs = belongs && suffix == ""
	default:
		belongs = false
	}
	_, known := p.last.values[series]
	v, err := strconv.ParseFloat(value, 64)
	if !ok || !belongs || known || err != nil {
		return false
	}
	p.last.set(series, v)
	return true
}

// nameOf is the name of a series with labels, or false if it is none.
func nameOf(series string) (string, bool) {
	name, labels, hasLabels := strings.Cut(series, "{")
	if !isName(name) {
		return "", false
	}
	for hasLabels {
		label, rest, ok := strings.Cut(labels, `="`)
		end := endOfValue(rest)
		if !ok || !isName(label) || end < 0 {
			return "", false
		}
		if rest[end:] == `"}` {
			break
		}
		if labels, ok = strings.CutPrefix(rest[end:], `",`); !ok {
			return "", false
		}
	}
	return name, true
}

// endOfValue is the index of the quote that ends the value of a label, or -1.
func endOfValue(text string) int {
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			return i
		case '\\':
			i++
			if i == len(text) || !strings.Contains(`\"n`, text[i:i+1]) {
				return -1
			}
		}
	}
	return -1
}

func isName(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r != '_' && (r < 'a' || r > 'z') })
}
