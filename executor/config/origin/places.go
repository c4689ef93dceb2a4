package origin

import "github.com/pelletier/go-toml/v2/unstable"

// places are the lines of the keys in a settings file.
type places struct {
	defaults map[string]int
	serve    map[string]int
	images   []map[string]int // by the number of the section
}

// find finds the keys. The text has been read as settings before, and so is TOML. A key in an
// array of inline tables has no place.
func find(text []byte) places {
	found := places{defaults: make(map[string]int), serve: make(map[string]int)}
	var parser unstable.Parser
	parser.Reset(text)
	var path []string
	for parser.NextExpression() {
		e := parser.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			path, _ = keys(&parser, e)
			if e.Kind == unstable.ArrayTable && len(path) == 1 && path[0] == "image" {
				found.images = append(found.images, make(map[string]int))
			}
		case unstable.KeyValue:
			found.add(&parser, path, e)
		}
	}
	return found
}

// add adds a key in a table, or the keys of an inline table.
func (p *places) add(parser *unstable.Parser, path []string, e *unstable.Node) {
	own, line := keys(parser, e)
	path = append(append([]string{}, path...), own...)
	if value := e.Value(); value.Kind == unstable.InlineTable {
		for children := value.Children(); children.Next(); {
			p.add(parser, path, children.Node())
		}
		return
	}
	if len(path) != 2 {
		return
	}
	switch {
	case path[0] == "defaults":
		p.defaults[path[1]] = line
	case path[0] == "serve":
		p.serve[path[1]] = line
	case path[0] == "image" && len(p.images) > 0:
		p.images[len(p.images)-1][path[1]] = line
	}
}

// keys returns the parts of a dotted key, and the line of the first.
func keys(parser *unstable.Parser, e *unstable.Node) (parts []string, line int) {
	for it := e.Key(); it.Next(); {
		node := it.Node()
		if len(parts) == 0 {
			line = parser.Shape(node.Raw).Start.Line
		}
		parts = append(parts, string(node.Data))
	}
	return parts, line
}
