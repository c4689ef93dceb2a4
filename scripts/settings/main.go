// settings makes docs/settings.md from config.example.toml, so that each setting is
// described in one place.
//
//	go run ./scripts/settings [-check] DIR
//
// DIR is the root of the repository. With -check it only compares, and the exit status
// is 1 if the page differs.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

func main() {
	check := flag.Bool("check", false, "compare the page with the file, and write nothing")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: settings [-check] DIR")
		os.Exit(64)
	}
	if err := run(flag.Arg(0), *check); err != nil {
		fmt.Fprintln(os.Stderr, "settings:", err)
		os.Exit(1)
	}
}

func run(root string, check bool) error {
	example, err := os.ReadFile(filepath.Join(root, "config.example.toml"))
	if err != nil {
		return err
	}
	made, err := Page(string(example))
	if err != nil {
		return fmt.Errorf("config.example.toml: %w", err)
	}
	path := filepath.Join(root, "docs", "settings.md")
	if !check {
		return os.WriteFile(path, []byte(made), 0o644)
	}
	written, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Equal(written, []byte(made)) {
		return fmt.Errorf("%s does not match config.example.toml; run: make settings", path)
	}
	return nil
}

// An entry is a paragraph of comments and the settings that it describes.
type entry struct {
	Text     []string // lines
	Settings []setting
	Table    string // of the settings: defaults, image
	Image    bool   // whether an [[image]] section may have them
}

type setting struct{ Key, Default string }

var (
	assignment = regexp.MustCompile(`^#?([a-z_]+) = (.+)$`)
	table      = regexp.MustCompile(`^#?\[+([a-z.]+)\]+$`)
	pageName   = regexp.MustCompile(`docs/([a-z-]+\.md)`)
)

// parse reads the example. A paragraph ends at an empty line; one without settings is
// text between entries. A table named [x] is commented out as #[x] if it is optional.
func parse(example string) (entries []entry) {
	current, where, image := entry{}, "", false
	flush := func() {
		if len(current.Text)+len(current.Settings) > 0 {
			entries = append(entries, current)
		}
		current = entry{Table: where, Image: image}
	}
	for line := range strings.Lines(example) {
		line = strings.TrimRight(line, "\n")
		if m := table.FindStringSubmatch(line); m != nil {
			flush()
			where, image = m[1], false
			current = entry{Table: where}
			continue
		}
		if m := assignment.FindStringSubmatch(line); m != nil {
			current.Settings = append(current.Settings, setting{m[1], m[2]})
			continue
		}
		text, isComment := strings.CutPrefix(line, "#")
		switch {
		case !isComment:
			flush()
		case len(current.Settings) > 0: // the next one, without an empty line between
			flush()
			fallthrough
		default:
			current.Text = append(current.Text, strings.TrimPrefix(text, " "))
			if strings.Contains(line, "can also appear in an [[image]] section") {
				image = true
			}
		}
	}
	flush()
	return entries
}

// Page returns the Markdown of an example file.
func Page(example string) (string, error) {
	entries := parse(example)
	var out strings.Builder
	out.WriteString("# Settings\n\n<!-- Made from config.example.toml by scripts/settings; edit that file and run: make settings -->\n\n")
	var body strings.Builder
	seen, rows, last := map[string]bool{}, []string{}, ""
	for _, e := range entries {
		if e.Table != last {
			last = e.Table
			fmt.Fprintf(&body, "## %s\n\n", heading(last))
		}
		if len(e.Settings) > 0 {
			names := make([]string, len(e.Settings))
			for i, s := range e.Settings {
				names[i] = s.Key
				id := e.Table + "." + s.Key
				if seen[id] {
					return "", fmt.Errorf("%s appears twice", id)
				}
				seen[id] = true
				rows = append(rows, fmt.Sprintf("| [`%s`](#%s) | `%s` | %s |\n", s.Key, anchor(e), s.Default, places(e)))
			}
			fmt.Fprintf(&body, "<a id=\"%s\"></a>\n\n### `%s`\n\n", anchor(e), strings.Join(names, "`, `"))
		}
		if len(e.Text) > 0 {
			target := &body
			if e.Table == "" {
				target = &out
			}
			target.WriteString(markdown(e.Text) + "\n")
		}
		if len(e.Settings) > 0 {
			body.WriteString("```toml\n")
			for _, s := range e.Settings {
				fmt.Fprintf(&body, "%s = %s\n", s.Key, s.Default)
			}
			body.WriteString("```\n\n")
		}
	}
	if len(rows) == 0 {
		return "", fmt.Errorf("has no settings")
	}
	out.WriteString("| setting | default | in |\n|---|---|---|\n" + strings.Join(rows, "") + "\n")
	return strings.TrimRight(out.String()+body.String(), "\n") + "\n", nil
}

// anchor returns the name by which the index links to an entry: that of its first setting.
func anchor(e entry) string {
	return strings.ReplaceAll(e.Table+"-"+e.Settings[0].Key, "_", "-")
}

func places(e entry) string {
	switch {
	case e.Table == "image":
		return "`[[image]]`"
	case e.Image:
		return "`[defaults]`, `[[image]]`"
	}
	return "`[" + e.Table + "]`"
}

func heading(table string) string {
	if table == "image" {
		return "`[[image]]`"
	}
	return "`[" + table + "]`"
}

// markdown escapes text and links to the pages that it names. Indented lines are code.
func markdown(lines []string) string {
	var out strings.Builder
	code := false
	for _, line := range lines {
		if indented := strings.HasPrefix(line, "  "); indented != code {
			if code = indented; code {
				out.WriteString("\n```\n")
			} else {
				out.WriteString("```\n\n")
			}
		}
		switch {
		case code:
			out.WriteString(strings.TrimPrefix(line, "  "))
		default:
			line = strings.NewReplacer("*", `\*`, "<", `\<`).Replace(line)
			out.WriteString(pageName.ReplaceAllString(line, "[$1]($1)"))
		}
		out.WriteString("\n")
	}
	if code {
		out.WriteString("```\n")
	}
	return out.String()
}
