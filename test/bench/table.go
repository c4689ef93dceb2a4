package main

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
)

// A table is what was measured, and what was to be reached.
type table struct {
	rows   [][4]string
	missed bool
}

func (t *table) add(what, got, goal string, reached bool) {
	verdict := ""
	if goal != "" {
		verdict = "yes"
	}
	if !reached {
		verdict, t.missed = "NO", true
	}
	t.rows = append(t.rows, [4]string{what, got, goal, verdict})
}

func (t *table) print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "WHAT\tMEASURED\tGOAL\tREACHED")
	for _, row := range t.rows {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", row[0], row[1], row[2], row[3])
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if t.missed {
		return errors.New("a goal was missed")
	}
	return nil
}
