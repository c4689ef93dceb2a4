package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// A listed package is one as go list sees it.
type listed struct {
	ImportPath string
	Dir        string
	Export     string // the file with the compiler's export data
	GoFiles    []string
	CgoFiles   []string
	Imports    []string
}

func (l listed) path() string { return strings.TrimPrefix(l.ImportPath, Module+"/") }

// list returns the packages of this module.
func list(t *testing.T) []listed {
	t.Helper()
	var own []listed
	for _, l := range listAll(t) {
		if strings.HasPrefix(l.ImportPath, Module+"/") {
			own = append(own, l)
		}
	}
	return own
}

// listAll returns the packages of this module and all that they import.
func listAll(t *testing.T) []listed {
	t.Helper()
	all, err := listOnce()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	return all
}

// listOnce runs go list once for all tests.
var listOnce = sync.OnceValues(func() (all []listed, err error) {
	cmd := exec.Command("go", "list", "-export", "-deps", "-json=ImportPath,Dir,Export,GoFiles,CgoFiles,Imports", "./...")
	cmd.Dir = "../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, stderr.String())
	}
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var l listed
		if err := decoder.Decode(&l); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		all = append(all, l)
	}
})

// TestImports: the table says what the code imports.
func TestImports(t *testing.T) {
	allowed := map[string][]string{}
	for _, p := range Packages {
		allowed[p.Path] = strings.Fields(p.Imports)
	}
	found := map[string]bool{}
	for _, l := range list(t) {
		found[l.path()] = true
		may, ok := allowed[l.path()]
		if !ok {
			t.Errorf("package %s is not in packages.go", l.path())
			continue
		}
		var imports []string
		for _, path := range l.Imports {
			if own, ok := strings.CutPrefix(path, Module+"/"); ok {
				imports = append(imports, own)
			}
		}
		for _, path := range imports {
			if !slices.Contains(may, path) {
				t.Errorf("%s imports %s; if that is right, add it to packages.go and run make architecture", l.path(), path)
			}
		}
		for _, path := range may {
			if !slices.Contains(imports, path) {
				t.Errorf("%s no longer imports %s; remove it from packages.go and run make architecture", l.path(), path)
			}
		}
	}
	for path := range allowed {
		if !found[path] {
			t.Errorf("packages.go has %s, the module does not", path)
		}
	}
}

// TestAreasApart: the table allows no import from one area to another that it must not
// know.
func TestAreasApart(t *testing.T) {
	area := map[string]string{}
	for _, p := range Packages {
		area[p.Path] = p.area()
	}
	for _, p := range Packages {
		for _, to := range strings.Fields(p.Imports) {
			if slices.Contains(Apart, [2]string{p.area(), area[to]}) {
				t.Errorf("%s must not import %s: %s does not know %s", p.Path, to, p.area(), area[to])
			}
		}
	}
}

// TestRules: who imports libvirt and other large modules.
func TestRules(t *testing.T) {
	used := map[string]bool{}
	for _, l := range list(t) {
		for _, rule := range Rules {
			for _, path := range l.Imports {
				if path != rule.Import && !strings.HasPrefix(path, rule.Import+"/") {
					continue
				}
				used[rule.Import] = true
				if !slices.Contains(rule.By, l.path()) {
					t.Errorf("%s imports %s, which only %v may: %s", l.path(), path, rule.By, rule.Why)
				}
			}
		}
	}
	for _, rule := range Rules {
		if !used[rule.Import] {
			t.Errorf("nothing imports %s: the rule checks nothing", rule.Import)
		}
	}
}

// TestSizes: a package is small enough to be read as a whole.
func TestSizes(t *testing.T) {
	total, count := 0, 0
	for _, l := range list(t) {
		lines := 0
		for _, name := range slices.Concat(l.GoFiles, l.CgoFiles) {
			text, err := os.ReadFile(filepath.Join(l.Dir, name))
			if err != nil {
				t.Fatal(err)
			}
			lines += bytes.Count(text, []byte("\n"))
		}
		if lines == 0 {
			continue // tests only
		}
		total, count = total+lines, count+1
		if _, ok := Larger[l.path()]; lines > MaxLines && !ok {
			t.Errorf("%s has %d lines, at most %d: split it", l.path(), lines, MaxLines)
		} else if ok && lines <= MaxLines {
			t.Errorf("%s has %d lines: it needs no exception", l.path(), lines)
		}
	}
	if mean := total / count; mean > MaxMeanLines {
		t.Errorf("%d packages have %d lines in the mean, at most %d", count, mean, MaxMeanLines)
	}
}

// TestWithoutCgo: others can use the SSH client without libvirt, and without a C compiler.
func TestWithoutCgo(t *testing.T) {
	cmd := exec.Command("go", "build", "./vm/guestssh")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestDrawing: what is committed is what the packages say.
func TestDrawing(t *testing.T) {
	svg, err := os.ReadFile("../../docs/architecture.svg")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(svg, SVG()) {
		t.Error("docs/architecture.svg is not drawn from packages.go: run make architecture")
	}
	text, err := os.ReadFile("../../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	table, err := Table("../..")
	if err != nil {
		t.Fatal(err)
	}
	if is, err := ReplaceTable(text, table); err != nil || !bytes.Equal(is, text) {
		t.Errorf("the table in docs/architecture.md is not that of the package comments (%v): run make architecture", err)
	}
}
