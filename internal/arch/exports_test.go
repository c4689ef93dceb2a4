package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
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

// compiled is a package and the export data that the compiler wrote of it.
type compiled struct {
	ImportPath string
	Dir        string
	Export     string
	GoFiles    []string
	ImportMap  map[string]string
}

func checkModule(t *testing.T) *module {
	t.Helper()
	exports, own := listCompiled(t)
	fset := token.NewFileSet()
	m := &module{used: map[string]bool{}}
	for _, c := range own {
		from := importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) {
			if mapped, ok := c.ImportMap[path]; ok {
				path = mapped
			}
			file, ok := exports[path]
			if !ok {
				return nil, fmt.Errorf("no export data of %s", path)
			}
			return os.Open(file)
		})
		var files []*ast.File
		for _, name := range c.GoFiles {
			if !filepath.IsAbs(name) {
				name = filepath.Join(c.Dir, name)
			}
			file, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, file)
		}
		info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
		config := types.Config{Importer: from}
		checkedTypes, err := config.Check(c.ImportPath, fset, files, info)
		if err != nil {
			t.Fatalf("%s: %v", c.ImportPath, err)
		}
		p := &checked{Package{Path: strings.TrimPrefix(c.ImportPath, Module+"/")}, checkedTypes}
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

// listCompiled returns the files with export data by import path, and the packages of this
// module.
func listCompiled(t *testing.T) (exports map[string]string, own []compiled) {
	t.Helper()
	cmd := exec.Command("go", "list", "-export", "-deps", "-json=ImportPath,Dir,Export,GoFiles,ImportMap", "./...")
	cmd.Dir = "../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	exports = map[string]string{}
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var c compiled
		if err := decoder.Decode(&c); errors.Is(err, io.EOF) {
			return exports, own
		} else if err != nil {
			t.Fatal(err)
		}
		exports[c.ImportPath] = c.Export
		if strings.HasPrefix(c.ImportPath, Module+"/") && len(c.GoFiles) > 0 {
			own = append(own, c)
		}
	}
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
