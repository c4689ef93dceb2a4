package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// notPrinted are named errors that are never printed, and why.
var notPrinted = map[string]string{
	"executor/guestshell.ErrCacheUnusable": "the guest's script says why; the cache is dropped",
	"vm/network/passt.ErrNoRoute":          "QEMU's network is used instead, with a warning",
	"oci/store.errPublished":               "ends a pull that another has overtaken: not a failure",
	"oci/transport.ErrNoRange":             "the whole blob is read instead",
	"vm.errMoved":                          "the wait goes on at the new address",
	"vm/define.errNoOrigin":                "the domain is left out of the list",
	"vm/guestssh.errUnanswered":            "the message says for how long",
	"vm/virt.ErrNoMetadata":                "means that the domain is not a job's",
	"vm/virt.errClosed":                    "the package is at fault that asks a connection after closing it",
}

// A message is a text that the driver prints, with the place in the code.
type message struct{ name, text string }

// fragment is the longest part of a format without verbs.
func (m message) fragment() string {
	parts := regexp.MustCompile(`%(\[\d+\])?[-+# 0]*[\d.]*[a-z]`).Split(m.text, -1)
	longest := slices.MaxFunc(parts, func(a, b string) int { return len(a) - len(b) })
	return strings.Trim(strings.ReplaceAll(longest, "%%", "%"), " :;,()")
}

// messages finds what a job's log can show in a failure and that has words of its own:
// the named errors and warnings of executor, vm and oci, the warnings of the job's log, and
// the rules that a job broke (failure.OfJob).
func messages(t *testing.T) []message {
	t.Helper()
	var found []message
	for _, root := range []string{"executor", "vm", "oci"} {
		err := filepath.WalkDir(filepath.Join("..", "..", root), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.Contains(path, "ocitest") || strings.Contains(path, "/doctor/") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			where := strings.TrimPrefix(filepath.ToSlash(filepath.Dir(path)), "../../")
			found = append(found, namedErrors(where, file)...)
			found = append(found, calls(where, file)...)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}

// namedErrors are the variables of a package that are made with errors.New, and its
// constants with a name such as slirpWarning.
func namedErrors(where string, file *ast.File) (found []message) {
	for _, decl := range file.Decls {
		general, ok := decl.(*ast.GenDecl)
		if !ok || general.Tok != token.VAR && general.Tok != token.CONST {
			continue
		}
		for _, spec := range general.Specs {
			value := spec.(*ast.ValueSpec)
			for i, v := range value.Values {
				if call, ok := v.(*ast.CallExpr); ok && isCall(call, "errors", "New") {
					found = append(found, message{where + "." + value.Names[i].Name, literal(call.Args[0])})
				} else if name := value.Names[i].Name; strings.HasSuffix(name, "Warning") {
					found = append(found, message{where + "." + name, literal(v)})
				}
			}
		}
	}
	return found
}

// calls are the warnings of the job's log, and the errors that failure.OfJob marks.
func calls(where string, file *ast.File) (found []message) {
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || len(call.Args) == 0 {
			return true
		}
		text := ""
		switch inner, isNested := call.Args[0].(*ast.CallExpr); {
		case isNested && isCall(call, "failure", "OfJob") && (isCall(inner, "errors", "New") || isCall(inner, "fmt", "Errorf")):
			text = literal(inner.Args[0])
		case isWarning(call):
			text = literal(call.Args[0])
		}
		if len(text) > 10 { // "%s" prints another message
			found = append(found, message{where, text})
		}
		return true
	})
	return found
}

func isCall(call *ast.CallExpr, pkg, name string) bool {
	selector, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || selector.Sel.Name != name {
		return false
	}
	ident, ok := selector.X.(*ast.Ident)
	return ok && ident.Name == pkg
}

// isWarning reports a call of the job's log: log.Warn, d.Log.Warn.
func isWarning(call *ast.CallExpr) bool {
	selector, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || selector.Sel.Name != "Warn" {
		return false
	}
	switch x := selector.X.(type) {
	case *ast.Ident:
		return x.Name == "log"
	case *ast.SelectorExpr:
		return x.Sel.Name == "Log"
	}
	return false
}

// literal joins the strings of an expression.
func literal(expr ast.Expr) string {
	switch e := expr.(type) {
	case *ast.BasicLit:
		text, _ := strconv.Unquote(e.Value)
		return text
	case *ast.BinaryExpr:
		return literal(e.X) + literal(e.Y)
	}
	return ""
}

// guestMessages are the warnings of the scripts that run in guests.
func guestMessages(t *testing.T) (found []message) {
	t.Helper()
	scripts, err := filepath.Glob("../../executor/guestshell/scripts/*.sh")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("%d scripts, %v", len(scripts), err)
	}
	variable := regexp.MustCompile(`\$(\{\w+\}|\w+|\*)`)
	for _, path := range scripts {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range regexp.MustCompile(`echo "warn ([^"]+)"`).FindAllStringSubmatch(string(text), -1) {
			found = append(found, message{filepath.Base(path), variable.ReplaceAllString(match[1], "%s")})
		}
	}
	return found
}

// docs/troubleshooting.md explains each message.
func TestTroubleshooting(t *testing.T) {
	raw, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	page := strings.Join(strings.Fields(string(raw)), " ")
	found := append(messages(t), guestMessages(t)...)
	if len(found) < 50 {
		t.Errorf("the code has %d messages: does the test still find them?", len(found))
	}
	names := map[string]bool{}
	for _, m := range found {
		names[m.name] = true
		if notPrinted[m.name] == "" && !strings.Contains(page, m.fragment()) {
			t.Errorf("docs/troubleshooting.md does not explain %q (%s)", m.text, m.name)
		}
	}
	for name := range notPrinted {
		if !names[name] {
			t.Errorf("there is no %s", name)
		}
	}
	for _, class := range []string{"build failure", "system failure"} {
		if !strings.Contains(page, class) {
			t.Errorf("docs/troubleshooting.md does not explain %q", class)
		}
	}
}
