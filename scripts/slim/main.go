// Command slim prepares a build without text/template, and prints the path of its module file.
//
//	go build -modfile "$(go run ./scripts/slim DIR)" …
//
// A program with text/template keeps every exported method of every type that it uses, since a
// template could call it by name: that is an eighth of ours. Only urfave/cli uses it, for
// the texts of --help. DIR gets a copy of that module; functions.go.txt replaces the function that
// prints them, and prints the same, as scripts/check-binary.sh checks. A plain go build works as
// well.
//
// A file that has its content already is not touched: builds at the same time do not disturb each
// other, and another user can have made DIR.
package main

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"
)

const module = "github.com/urfave/cli/v2"

//go:embed functions.go.txt
var functions []byte

// The function that functions.go.txt replaces, and its file.
const replaced, replacedIn = "printHelpCustom", "help.go"

func main() {
	if len(os.Args) != 2 || filepath.IsAbs(os.Args[1]) {
		fmt.Fprintln(os.Stderr, "usage: slim DIR (below the directory of go.mod)")
		os.Exit(64)
	}
	name, err := write(filepath.Clean(os.Args[1]))
	if err != nil {
		fmt.Fprintln(os.Stderr, "slim:", err)
		os.Exit(1)
	}
	fmt.Println(name)
}

// write writes the module and the module file to dir, and returns the path of the latter.
func write(dir string) (string, error) {
	list := exec.Command("go", "list", "-f", "{{.Dir}}", module)
	list.Stderr = os.Stderr
	listed, err := list.Output()
	if err != nil {
		return "", fmt.Errorf("find %s: %w", module, err)
	}
	original, copied := string(bytes.TrimSpace(listed)), filepath.Join(dir, "cli")
	if err := os.MkdirAll(copied, 0o755); err != nil {
		return "", err
	}
	files, err := filepath.Glob(filepath.Join(original, "*"))
	if err != nil {
		return "", err
	}
	written := map[string]bool{"functions.go": true}
	for _, file := range files {
		name := filepath.Base(file)
		if strings.HasSuffix(name, "_test.go") || filepath.Ext(name) != ".go" && name != "go.mod" && name != "LICENSE" {
			continue
		}
		text, err := os.ReadFile(file)
		if err == nil && name == replacedIn {
			text, err = without(text, replaced)
		}
		if err == nil {
			err = update(filepath.Join(copied, name), text)
		}
		if err != nil {
			return "", fmt.Errorf("%s of %s: %w", name, module, err)
		}
		written[name] = true
	}
	if err := removeOthers(copied, written); err != nil {
		return "", err
	}
	name := filepath.Join(dir, "go.mod")
	return name, errors.Join(
		update(filepath.Join(copied, "functions.go"), functions),
		add("go.mod", name, fmt.Sprintf("\nreplace %s => ./%s\n", module, filepath.ToSlash(copied))),
		add("go.sum", filepath.Join(dir, "go.sum"), ""))
}

// add copies a file with some text after it.
func add(from, to, text string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return update(to, append(content, text...))
}

// update replaces the content of a file atomically, unless it is right already.
func update(path string, content []byte) error {
	if was, err := os.ReadFile(path); err == nil && bytes.Equal(was, content) {
		return nil
	}
	return renameio.WriteFile(path, content, 0o644)
}

// removeOthers removes what an older version of the module had.
func removeOthers(dir string, written map[string]bool) error {
	entries, err := os.ReadDir(dir)
	for _, entry := range entries {
		if name := entry.Name(); !written[name] && filepath.Ext(name) == ".go" {
			err = errors.Join(err, os.Remove(filepath.Join(dir, name)))
		}
	}
	return err
}

// without returns the text of a file without a function, and without the imports that nothing
// else uses.
func without(text []byte, function string) ([]byte, error) {
	text, err := remove(text, func(file *ast.File) []ast.Node {
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Name.Name == function {
				return []ast.Node{f}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", function, err)
	}
	if text, err = remove(text, unusedImports); err != nil {
		return nil, err
	}
	return format.Source(text) // make lint looks at it, too
}

// remove returns the text of a file without the nodes chosen. It is an error if there are none.
func remove(text []byte, choose func(*ast.File) []ast.Node) ([]byte, error) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, "", text, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	nodes := choose(file)
	if len(nodes) == 0 {
		return nil, fmt.Errorf("nothing to remove")
	}
	for _, node := range slices.Backward(nodes) {
		text = slices.Delete(text, set.Position(node.Pos()).Offset, set.Position(node.End()).Offset)
	}
	return text, nil
}

func unusedImports(file *ast.File) (unused []ast.Node) {
	used := map[string]bool{}
	ast.Inspect(file, func(node ast.Node) bool {
		if selector, ok := node.(*ast.SelectorExpr); ok {
			if name, ok := selector.X.(*ast.Ident); ok {
				used[name.Name] = true
			}
		}
		return true
	})
	for _, spec := range file.Imports {
		name, _ := strconv.Unquote(spec.Path.Value)
		if !used[path.Base(name)] {
			unused = append(unused, spec)
		}
	}
	return unused
}
