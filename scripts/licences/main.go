// licences checks the licences of everything that is linked into the program. For each
// module it reads the licence files at the module's root and beside the packages that are
// compiled in. The only C libraries allowed are libvirt (LGPL-2.1-or-later, dynamically
// linked) and the C library itself.
//
//	go run ./scripts/licences [-tags TAGS] PACKAGE [BINARY]
package main

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/google/licensecheck"
)

// allowed are the licences (SPDX) under which a module may be linked into a program
// under Apache-2.0. GPL, AGPL and LGPL are not among them.
var allowed = []string{
	"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "MPL-2.0", "Unlicense",
}

// documentation names licence files that concern no code.
var documentation = regexp.MustCompile(`(?i)\.docs$`)

// licenceFile matches the names under which Go modules keep their licences.
var licenceFile = regexp.MustCompile(`(?i)^((un)?licen[cs]e|copying|go_license)`)

// libraries are the C libraries that the program may need.
var libraries = regexp.MustCompile(`^(libvirt(-admin|-lxc|-qemu)?\.so\.0|libc\.so\.6|libresolv\.so\.2|libpthread\.so\.0|ld-linux.*)$`)

// coverage is how much of a licence file must be text of known licences, in percent.
// The rest is copyright lines and headings.
const coverage = 75

// module is what go list tells about a package's module.
type module struct {
	Path, Version, Dir string
	Main               bool
}

func main() {
	tags := flag.String("tags", "", "build tags of the program")
	flag.Parse()
	if flag.NArg() < 1 || flag.NArg() > 2 {
		fmt.Fprintln(os.Stderr, "usage: licences [-tags TAGS] PACKAGE [BINARY]")
		os.Exit(64)
	}
	if err := check(*tags, flag.Arg(0), flag.Arg(1), os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "licences: %v\n", err)
		os.Exit(1)
	}
}

// check looks at all modules before it fails, so that one run tells everything.
func check(tags, pkg, binary string, stdout io.Writer) error {
	dirs, err := linked(tags, pkg)
	if err != nil {
		return err
	}
	var problems []error
	counts := map[string]int{}
	for _, m := range slices.SortedFunc(maps.Keys(dirs), func(a, b module) int { return strings.Compare(a.Path, b.Path) }) {
		ids, err := licencesOf(m, dirs[m])
		if err != nil {
			problems = append(problems, fmt.Errorf("%s %s: %w", m.Path, m.Version, err))
			continue
		}
		counts[strings.Join(ids, " and ")]++
	}
	if binary != "" {
		problems = append(problems, checkLibraries(binary))
	}
	for _, ids := range slices.Sorted(maps.Keys(counts)) {
		fmt.Fprintf(stdout, "%4d %s\n", counts[ids], ids)
	}
	return errors.Join(problems...)
}

// linked returns the modules whose packages are compiled into pkg, each with the
// directories of these packages and its own.
func linked(tags, pkg string) (map[module][]string, error) {
	cmd := exec.Command("go", "list", "-deps", "-tags", tags, "-json=Dir,Module", pkg)
	cmd.Stderr = os.Stderr
	output, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list %s: %w", pkg, err)
	}
	dirs := map[module][]string{}
	for decoder := json.NewDecoder(bytes.NewReader(output)); ; {
		var p struct {
			Dir    string
			Module *module
		}
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("output of go list: %w", err)
		}
		// Packages without a module are Go's own (BSD-3-Clause).
		if p.Module == nil || p.Module.Main {
			continue
		}
		if dirs[*p.Module] == nil {
			dirs[*p.Module] = []string{p.Module.Dir}
		}
		if p.Dir != p.Module.Dir {
			dirs[*p.Module] = append(dirs[*p.Module], p.Dir)
		}
	}
	if len(dirs) == 0 {
		return nil, fmt.Errorf("%s is linked from no module: the check would see nothing", pkg)
	}
	return dirs, nil
}

// licencesOf returns the licences of the files in dirs. A module without a file that
// names one is an error: without a licence it must not be copied.
func licencesOf(m module, dirs []string) ([]string, error) {
	found := map[string]bool{}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, entry := range entries {
			if entry.IsDir() || !licenceFile.MatchString(entry.Name()) || documentation.MatchString(entry.Name()) {
				continue
			}
			ids, err := identify(filepath.Join(dir, entry.Name()))
			if err != nil {
				return nil, err
			}
			for _, id := range ids {
				found[id] = true
			}
		}
	}
	if len(found) == 0 {
		return nil, errors.New("no licence file")
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// identify returns the licences that a file holds, all of them allowed.
func identify(file string) ([]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	result := licensecheck.Scan(text)
	var ids []string
	for _, match := range result.Match {
		if !slices.Contains(allowed, match.ID) {
			return nil, fmt.Errorf("%s: licence %s is not allowed (%s)", file, match.ID, strings.Join(allowed, ", "))
		}
		ids = append(ids, match.ID)
	}
	if len(ids) == 0 || result.Percent < coverage {
		return nil, fmt.Errorf("%s: only %.0f %% of it is the text of a known licence", file, result.Percent)
	}
	return ids, nil
}

// checkLibraries refuses a binary that is linked to an unexpected C library.
func checkLibraries(binary string) error {
	file, err := elf.Open(binary)
	if err != nil {
		return err
	}
	defer file.Close()
	needed, err := file.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s: %w", binary, err)
	}
	for _, library := range needed {
		if !libraries.MatchString(library) {
			return fmt.Errorf("%s needs %s, whose licence was not looked at", binary, library)
		}
	}
	return nil
}
