package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write docs/commands.md")

const commandsHead = `# Commands

The output of ` + "`gitlab-sardine-executor COMMAND --help`" + `. (` + "`go test ./cmd/gitlab-sardine-executor -run TestCommandsPage -update`" + `
writes this page.)

GitLab Runner calls the four stages; all other commands are for people. Try an image with ` + "`try`" + `, make one with
` + "`export`" + ` and ` + "`push`" + `, look after a host with ` + "`doctor`, `status`, `images`, `prune`" + ` and ` + "`sweep`" + `.
`

// help returns the output of --help.
func help(t *testing.T, args ...string) string {
	t.Helper()
	var stdout bytes.Buffer
	if status := run(append([]string{"gitlab-sardine-executor"}, args...), &stdout, io.Discard); status != 0 {
		t.Fatalf("%q: status %d", args, status)
	}
	return strings.TrimSpace(stdout.String())
}

// docs/commands.md is the help of every command, with examples.
func TestCommandsPage(t *testing.T) {
	var page strings.Builder
	page.WriteString(commandsHead)
	fence := func(title, text string) { fmt.Fprintf(&page, "\n## %s\n\n```text\n%s\n```\n", title, text) }
	// Without the version, which differs between builds.
	fence("All", regexp.MustCompile(`(?s)VERSION:\n.*?\n\n`).ReplaceAllString(help(t, "--help"), ""))
	for _, c := range newApp(io.Discard, io.Discard).Commands {
		if c.Usage == "" {
			t.Errorf("%s has no usage", c.Name)
		}
		text := help(t, c.Name, "--help")
		if !strings.Contains(text, "Example") {
			t.Errorf("the help of %s has no example", c.Name)
		}
		fence(c.Name, text)
		for _, sub := range c.Subcommands {
			if sub.Name == "help" {
				continue
			}
			text := help(t, c.Name, sub.Name, "--help")
			if sub.Usage == "" || !strings.Contains(text, "Example") {
				t.Errorf("the help of %s %s has no usage or no example", c.Name, sub.Name)
			}
			fence(c.Name+" "+sub.Name, text)
		}
	}
	const path = "../../docs/commands.md"
	if *update {
		if err := os.WriteFile(path, []byte(page.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(page.String(), string(text)); diff != "" {
		t.Errorf("docs/commands.md differs from --help (go test -run TestCommandsPage -update):\n%s", diff)
	}
}

// README and the site list every page of docs/, and no link to a file or heading is dead.
func TestLinks(t *testing.T) {
	const root = "../.."
	pages, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil || len(pages) < 5 {
		t.Fatalf("pages: %v, %v", pages, err)
	}
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	site, err := os.ReadFile(filepath.Join(root, "mkdocs.yml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		name := "docs/" + filepath.Base(page)
		if !strings.Contains(string(readme), "| ["+name+"]("+name+") |") {
			t.Errorf("README.md does not list %s", name)
		}
		if !strings.Contains(string(site), " "+name+"\n") {
			t.Errorf("mkdocs.yml does not list %s", name)
		}
	}
	link := regexp.MustCompile(`\]\(([^)#: ]*)(?:#([^) ]*))?\)`)
	for _, name := range []string{"README.md", "CONTRIBUTING.md", "CHANGELOG.md"} {
		pages = append(pages, filepath.Join(root, name))
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, to := range link.FindAllStringSubmatch(string(text), -1) {
			target := page // a heading of the same page
			if to[1] != "" {
				target = filepath.Join(filepath.Dir(page), to[1])
			}
			if info, err := os.Stat(target); err == nil && info.IsDir() && to[2] == "" {
				continue
			}
			there, err := os.ReadFile(target)
			if err != nil {
				t.Errorf("%s links to %s: %v", page, to[1], err)
			} else if to[2] != "" && !hasAnchor(string(there), to[2]) {
				t.Errorf("%s links to %s, which has no heading #%s", page, to[1], to[2])
			}
		}
	}
}

// The rows of each table have as many cells as its head: others are cut, or look empty.
func TestTables(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range append(pages, "../../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		columns, fenced := 0, false
		for n, line := range strings.Split(string(text), "\n") {
			if strings.HasPrefix(line, "```") {
				fenced = !fenced
			}
			if fenced || !strings.HasPrefix(line, "|") {
				columns = 0
				continue
			}
			cells := strings.Count(strings.ReplaceAll(line, `\|`, ""), "|") - 1
			if columns == 0 {
				columns = cells
			}
			if cells != columns {
				t.Errorf("%s:%d: %d cells, want %d", filepath.Base(page), n+1, cells, columns)
			}
		}
	}
}

// hasAnchor reports whether GitLab gives a heading of the page that anchor, or the page has it.
func hasAnchor(page, anchor string) bool {
	if strings.Contains(page, `<a id="`+anchor+`">`) {
		return true
	}
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(page, -1) {
		made := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(heading[1]), "")
		if strings.ReplaceAll(made, " ", "-") == anchor {
			return true
		}
	}
	return false
}
