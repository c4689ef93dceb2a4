// Package arch says how the packages of this module may import each other, checks it, and
// draws it: docs/architecture.svg and the table of packages in docs/architecture.md.
package arch

import "strings"

//go:generate go run ./draw ../..

// Module is the path of this module.
const Module = "gitlab-sardine-executor"

// A Package is one of this module, by its path below the module.
type Package struct {
	Path string
	// Imports are the packages of this module that it may import, separated by spaces.
	Imports string
}

// area is the part of the module that a package belongs to.
func (p Package) area() string {
	first, _, _ := strings.Cut(p.Path, "/")
	if strings.HasPrefix(p.Path, "internal/testbed") || p.Path == "internal/qcow2/qcow2test" || strings.HasPrefix(p.Path, "internal/arch") || p.isForTests() {
		return "test"
	}
	return first
}

// isForTests reports whether a package has what only tests use.
func (p Package) isForTests() bool {
	return strings.HasSuffix(p.Path, "test") && strings.Contains(p.Path, "/")
}

// An Area is a part of the module, as the drawing shows it.
type Area struct {
	Name, Title, Color string
	// Root is cut off from the names of its packages.
	Root string
	// Flat areas have no arrows among their packages.
	Flat bool
}

// Areas that are drawn; packages of other areas are tests and tools.
var Areas = map[string]Area{
	"cmd":      {Name: "cmd", Title: "cmd: flags and output", Color: "#f4f1ea", Root: "cmd"},
	"executor": {Name: "executor", Title: "executor: GitLab's contract", Color: "#eaf2f8", Root: "executor"},
	"vm":       {Name: "vm", Title: "vm: machines of libvirt", Color: "#eef6ec", Root: "vm"},
	"oci":      {Name: "oci", Title: "oci: from a registry to disks", Color: "#fbf0ee", Root: "oci"},
	"internal": {Name: "internal", Title: "internal: used by any of them", Color: "#f2f2f2", Root: "internal", Flat: true},
}

// Apart lists pairs of areas: the first never imports the second.
var Apart = [][2]string{
	{"oci", "vm"}, {"vm", "oci"},
	{"oci", "executor"}, {"vm", "executor"}, {"internal", "executor"}, {"internal", "vm"}, {"internal", "oci"},
	{"executor", "cmd"}, {"vm", "cmd"}, {"oci", "cmd"}, {"internal", "cmd"},
	{"cmd", "test"}, {"executor", "test"}, {"vm", "test"}, {"oci", "test"}, {"internal", "test"},
}

// A Rule names the only packages that may import a foreign one.
type Rule struct {
	// Import is the path of a package; those below it count, too.
	Import string
	By     []string
	Why    string
}

// Rules for imports of other modules.
var Rules = []Rule{
	{"libvirt.org/go/libvirt", []string{"vm/virt", "vm/virt/virttest"}, "libvirt's C library has no deadlines and needs cgo"},
	{"github.com/containers/image/v5", []string{"oci/registry", "oci/registry/distribution"}, "its import path and its types stay in one place"},
	{"golang.org/x/crypto/ssh", []string{"vm", "vm/guestssh", "vm/seed"}, "guestssh connects; the others only have keys"},
	{"github.com/urfave/cli/v2", []string{"cmd/gitlab-sardine-executor", "cmd/gitlab-sardine-executor/command", "cmd/gitlab-sardine-executor/daemon", "cmd/gitlab-sardine-executor/diagnose", "cmd/gitlab-sardine-executor/makeimage"}, "packages do not know flags"},
}

// MaxLines bounds the lines of one package, and MaxMeanLines those of the mean package,
// without tests: a package is read as a whole.
const (
	MaxLines     = 1500
	MaxMeanLines = 600
)

// Larger packages, and why.
var Larger = map[string]string{
	"vm/domainxml": "a list of what is kept of libvirt's domain XML, one type for each element",
}

// ExportedFor are names that no other package uses, and why they are exported.
var ExportedFor = map[string]string{
	"executor/config.Parse":  "settings for tests of the packages that take them",
	"executor/config.Shells": "a test compares them with those of executor/guestshell",
	"vm/domain.AccelAuto":    "a value of Source.Accel",
	"vm/domain.AccelKVM":     "a value of Source.Accel",
	"vm/domain.AccelTCG":     "a value of Source.Accel",
	"vm/domain.OmitAuto":     "a value of Source.OmitBackingStore",
	"vm/domain.OmitNo":       "a value of Source.OmitBackingStore",
	"vm/domain.OmitYes":      "a value of Source.OmitBackingStore",
}
