package e2e

import (
	"go/ast"
	"go/build/constraint"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The tests that the table of this package's comment names are there, and every
// test of the runner's part is in it.
func TestContractTable(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "doc.go", nil, parser.ParseComments|parser.PackageClauseOnly)
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]map[string]bool{
		"e2e":      testsIn(t, "."),
		"gitlab":   testsIn(t, "../../internal/testbed/gitlab"),
		"executor": testsIn(t, "../../executor"),
		"main":     testsIn(t, "../../cmd/gitlab-sardine-executor"),
	}
	rows, named := 0, map[string]bool{}
	for line := range strings.Lines(file.Doc.Text()) {
		columns := strings.Split(line, "|")
		if len(columns) != 3 || strings.Contains(line, "what GitLab Runner does") {
			continue
		}
		rows++
		for i, where := range []string{"gitlab", "e2e"} {
			names := strings.Fields(columns[i+1])
			if len(names) == 0 {
				t.Errorf("no test shows it: %s", line)
			}
			for _, name := range names {
				room := where
				if other, inner, found := strings.Cut(name, "."); found {
					room, name = other, inner
				}
				if !tests[room][name] {
					t.Errorf("there is no %s in %s: %s", name, room, line)
				}
				named[room+"."+name] = true
			}
		}
	}
	if rows < 50 {
		t.Errorf("the table has %d rows", rows)
	}
	for name := range tests["gitlab"] {
		if !named["gitlab."+name] {
			t.Errorf("the table does not say what %s shows", name)
		}
	}
}

// testsIn returns the names of the tests in a directory and those below it, but for
// tests that only make test-nightly runs.
func testsIn(t *testing.T, dir string) map[string]bool {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(path, "_test.go") {
			files = append(files, path)
		}
		return err
	})
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %v, %v", dir, files, err)
	}
	found := map[string]bool{}
	for _, path := range files {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		if isNightly(file) {
			continue
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name != "TestMain" && isTest.MatchString(f.Name.Name) {
				found[f.Name.Name] = true
			}
		}
	}
	return found
}

var isTest = regexp.MustCompile(`^Test[A-Z]`)

// isNightly says whether only make test-nightly compiles a file.
func isNightly(file *ast.File) bool {
	for _, group := range file.Comments {
		for _, comment := range group.List {
			if expr, err := constraint.Parse(comment.Text); err == nil {
				return !expr.Eval(func(tag string) bool { return tag != "nightly" })
			}
		}
	}
	return false
}
