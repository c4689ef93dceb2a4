// Command draw writes docs/architecture.svg, and the table of packages in
// docs/architecture.md, of the checkout that it is given. With -check it changes nothing,
// and fails if they differ from what it would write.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"gitlab-sardine-executor/internal/arch"
)

func main() {
	check := flag.Bool("check", false, "only compare")
	flag.Parse()
	if err := run(flag.Arg(0), *check); err != nil {
		fmt.Fprintln(os.Stderr, "draw:", err)
		os.Exit(1)
	}
}

func run(root string, check bool) error {
	text := filepath.Join(root, "docs", "architecture.md")
	old, err := os.ReadFile(text)
	if err != nil {
		return err
	}
	table, err := arch.Table(root)
	if err != nil {
		return err
	}
	withTable, err := arch.ReplaceTable(old, table)
	if err != nil {
		return err
	}
	for path, content := range map[string][]byte{
		filepath.Join(root, "docs", "architecture.svg"): arch.SVG(),
		text: withTable,
	} {
		is, err := os.ReadFile(path)
		if err == nil && bytes.Equal(is, content) {
			continue
		}
		if check {
			return fmt.Errorf("%s is not what the packages say: run make architecture", path)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}
