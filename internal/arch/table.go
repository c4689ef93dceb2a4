package arch

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

const (
	tableBegin = "<!-- packages: made by `make architecture` of the package comments -->\n"
	tableEnd   = "<!-- end of packages -->\n"
)

// Table is the table of packages, in Markdown, with the first sentence of the comment of
// each.
func Table(root string) ([]byte, error) {
	cmd := exec.Command("go", "list", "-f", "{{.ImportPath}}\t{{.Doc}}", "./...")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	docs := map[string]string{}
	for line := range strings.Lines(string(out)) {
		path, doc, _ := strings.Cut(strings.TrimSpace(line), "\t")
		docs[strings.TrimPrefix(path, Module+"/")] = doc
	}
	var b bytes.Buffer
	b.WriteString("| package | what it does |\n|---|---|\n")
	for _, p := range Packages {
		doc := docs[p.Path]
		if doc == "" {
			return nil, fmt.Errorf("package %s has no comment", p.Path)
		}
		fmt.Fprintf(&b, "| `%s` | %s |\n", p.Path, sentence(doc))
	}
	return b.Bytes(), nil
}

// sentence is a package comment without "Package x".
func sentence(doc string) string {
	if rest, ok := strings.CutPrefix(doc, "Package "); ok {
		_, doc, _ = strings.Cut(rest, " ")
	} else if rest, ok := strings.CutPrefix(doc, "Command "); ok {
		_, doc, _ = strings.Cut(rest, " ")
	}
	return strings.ReplaceAll(strings.TrimSuffix(doc, "."), "|", "\\|")
}

// ReplaceTable puts the table between its marks in a text.
func ReplaceTable(text, table []byte) ([]byte, error) {
	before, rest, ok := bytes.Cut(text, []byte(tableBegin))
	_, after, found := bytes.Cut(rest, []byte(tableEnd))
	if !ok || !found {
		return nil, errors.New("docs/architecture.md has no place for the table of packages")
	}
	var b bytes.Buffer
	for _, part := range [][]byte{before, []byte(tableBegin), []byte("\n"), table, []byte("\n"), []byte(tableEnd), after} {
		b.Write(part)
	}
	return b.Bytes(), nil
}
