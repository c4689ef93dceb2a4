package arch

import (
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestExports: each exported name has a user outside its package. Tests do not count, and
// packages for tests are not looked at.
func TestExports(t *testing.T) {
	m := checkModule(t)
	m.addSignatures()
	unused := m.unused()
	for full := range ExportedFor {
		if !slices.Contains(unused, full) {
			t.Errorf("%s is used, or there is no such name: it needs no exception", full)
		}
		m.used[full] = true
	}
	m.addSignatures()
	for _, full := range m.unused() {
		t.Errorf("%s is exported, and no other package uses it: unexport or delete it", full)
	}
}

// A module is the packages of this module with their types, and the names that are used
// by other packages than their own.
type module struct {
	packages []*checked
	used     map[string]bool // "path.Name", the path below the module
}

type checked struct {
	Package
	types *types.Package
}

func checkModule(t *testing.T) *module {
	t.Helper()
	exports := map[string]string{}
	for _, l := range listAll(t) {
		exports[l.ImportPath] = l.Export
	}
	fset := token.NewFileSet()
	m := &module{used: map[string]bool{}}
	// One importer for all packages: each file with export data is read once.
	from := importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) {
		file, ok := exports[path]
		if !ok {
			return nil, fmt.Errorf("no export data of %s", path)
		}
		return os.Open(file)
	})
	for _, l := range list(t) {
		if len(l.GoFiles) == 0 {
			continue // tests only
		}
		var files []*ast.File
		for _, name := range l.GoFiles {
			if !filepath.IsAbs(name) {
				name = filepath.Join(l.Dir, name)
			}
			file, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, file)
		}
		info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
		config := types.Config{Importer: from}
		checkedTypes, err := config.Check(l.ImportPath, fset, files, info)
		if err != nil {
			t.Fatalf("%s: %v", l.ImportPath, err)
		}
		p := &checked{Package{Path: l.path()}, checkedTypes}
		m.packages = append(m.packages, p)
		if p.area() != "test" {
			m.addUses(p.Path, info)
		}
	}
	return m
}

// unused returns the exported names that no other package uses.
func (m *module) unused() []string {
	var unused []string
	for _, p := range m.packages {
		if p.types.Name() == "main" || p.area() == "test" {
			continue
		}
		for _, name := range p.types.Scope().Names() {
			if object := p.types.Scope().Lookup(name); object.Exported() && !m.isUsed(object) {
				unused = append(unused, p.Path+"."+name)
			}
		}
	}
	return unused
}

// addUses notes which names of other packages a package uses.
func (m *module) addUses(by string, info *types.Info) {
	for _, object := range info.Uses {
		if path, ok := ownName(object); ok && path != by {
			m.used[path+"."+object.Name()] = true
		}
	}
}

// ownName returns the path of the package of this module that declares an object at its
// top level.
func ownName(object types.Object) (path string, ok bool) {
	if object.Pkg() == nil || object.Parent() != object.Pkg().Scope() {
		return "", false
	}
	return strings.CutPrefix(object.Pkg().Path(), Module+"/")
}

// addSignatures adds the types that are part of a name that is used, as the result of a
// function is, and the constants of a type that is used.
func (m *module) addSignatures() {
	for changed := true; changed; {
		changed = false
		for _, p := range m.packages {
			for _, name := range p.types.Scope().Names() {
				object := p.types.Scope().Lookup(name)
				parts := namedIn(object)
				if _, ok := object.(*types.Const); ok && len(parts) > 0 && m.isUsed(parts[0]) {
					parts = append(parts, object)
				} else if !m.isUsed(object) {
					continue
				}
				for _, part := range parts {
					if path, ok := ownName(part); ok && !m.isUsed(part) {
						m.used[path+"."+part.Name()], changed = true, true
					}
				}
			}
		}
	}
}

func (m *module) isUsed(object types.Object) bool {
	path, ok := ownName(object)
	return ok && m.used[path+"."+object.Name()]
}

// namedIn returns the named types in what an object shows: the signature of a function,
// exported fields, signatures of exported methods.
func namedIn(object types.Object) (found []types.Object) {
	var visit func(t types.Type)
	visit = func(t types.Type) {
		switch t := t.(type) {
		case *types.Named:
			found = append(found, t.Obj())
			for arg := range t.TypeArgs().Types() {
				visit(arg)
			}
		case *types.Alias:
			found = append(found, t.Obj())
			visit(t.Rhs())
		case *types.Signature:
			for _, vars := range []*types.Tuple{t.Params(), t.Results()} {
				for v := range vars.Variables() {
					visit(v.Type())
				}
			}
		case *types.Struct:
			for f := range t.Fields() {
				if f.Exported() {
					visit(f.Type())
				}
			}
		case *types.Interface:
			for method := range t.Methods() {
				visit(method.Type())
			}
		case *types.Map:
			visit(t.Key())
			visit(t.Elem())
		case interface{ Elem() types.Type }: // pointer, slice, array, channel
			visit(t.Elem())
		}
	}
	visit(object.Type())
	if named, ok := object.Type().(*types.Named); ok && named.Obj() == object {
		visit(named.Underlying())
		for method := range named.Methods() {
			if method.Exported() {
				visit(method.Type())
			}
		}
	}
	return found
}
