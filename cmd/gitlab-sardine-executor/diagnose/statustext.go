package diagnose

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/docker/go-units"

	"gitlab-sardine-executor/cmd/gitlab-sardine-executor/command"
	"gitlab-sardine-executor/executor/failure"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/executor/status"
)

// A painter colours text, if it is true.
type painter bool

// Colours of a terminal (ECMA-48, Select Graphic Rendition).
const (
	bold   = "1"
	red    = "31"
	green  = "32"
	yellow = "33"
)

func (p painter) paint(colour, text string) string {
	if !p || colour == "" || text == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// A cell of a table; the colour does not count for its width.
type cell struct{ text, colour string }

func plain(texts ...string) []cell {
	var cells []cell
	for _, text := range texts {
		cells = append(cells, cell{text: text})
	}
	return cells
}

// A section is a heading and a table.
type section struct {
	title  string
	header []string // none for a list without one
	rows   [][]cell
}

// statusText is the status for people.
func statusText(s *status.Status, p painter) string {
	sections := []section{machineSection(s), waitingSection(s), pullSection(s), imageSection(s), roomSection(s), failureSection(s)}
	var parts []string
	for _, part := range sections {
		parts = append(parts, part.text(p))
	}
	return strings.Join(parts, "\n")
}

func (s section) text(p painter) string {
	var b strings.Builder
	if len(s.rows) == 0 {
		return p.paint(bold, s.title) + ": none\n"
	}
	b.WriteString(p.paint(bold, s.title) + "\n")
	rows := s.rows
	if s.header != nil {
		rows = append([][]cell{plain(s.header...)}, rows...)
	}
	var widths []int
	for _, row := range rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			if i < len(row)-1 { // nothing is aligned to the last one
				widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
			}
		}
	}
	for _, row := range rows {
		b.WriteString(" ")
		for i, c := range row {
			b.WriteString(" " + p.paint(c.colour, c.text))
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", max(0, widths[i]-utf8.RuneCountInString(c.text))+1))
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

func machineSection(s *status.Status) section {
	part := section{title: "MACHINES", header: []string{"NAME", "STATE", "JOB", "PROJECT", "MEMORY", "AGE", "IMAGE"}}
	if s.Machines == nil {
		part.header, part.rows = nil, [][]cell{{{text: "libvirt did not answer", colour: red}}}
	}
	for _, m := range s.Machines {
		row := plain(m.Name, m.State, orDash(m.Job), orDash(m.Project), size(m.Memory), age(s.Time, m.Created), orDash(m.Image))
		row[1].colour = yellow
		if m.State == status.Ready {
			row[1].colour = green
		}
		part.rows = append(part.rows, row)
	}
	return part
}

func waitingSection(s *status.Status) section {
	part := section{title: "WAITING FOR ROOM"}
	if s.Waiting.Count > 0 {
		part.rows = append(part.rows, []cell{{text: fmt.Sprintf("%d, next: %s", s.Waiting.Count, visible(s.Waiting.First)), colour: yellow}})
	}
	return part
}

func pullSection(s *status.Status) section {
	part := section{title: "PULLS", header: []string{"DIGEST", "FROM", "RECEIVED", "OF", "ON DISK", "AGE"}}
	for _, pull := range s.Pulls {
		total := "?"
		if pull.Total > 0 {
			total = size(pull.Total)
		}
		part.rows = append(part.rows, plain(short(pull.Digest.String()), orDash(pull.Source), size(pull.Received), total, size(pull.Usage), age(s.Time, pull.Since)))
	}
	return part
}

func imageSection(s *status.Status) section {
	part := section{title: "IMAGES", header: []string{"DIGEST", "SIZE", "LAST USED", "MACHINES", "IMAGE"}}
	for _, image := range s.Images {
		name := cell{text: visible(strings.Join(image.References, ", "))}
		switch {
		case !image.Complete:
			name = cell{"(not complete)", yellow}
		case name.text == "":
			name.text = "(no name)"
		}
		row := plain(short(image.Digest.String()), size(image.Size), image.LastUsed.Local().Format(time.DateTime), strconv.Itoa(image.Machines))
		part.rows = append(part.rows, append(row, name))
	}
	return part
}

func roomSection(s *status.Status) section {
	r := s.Room
	slots := fmt.Sprintf("%d used, no limit", r.SlotsUsed)
	full := r.Slots > 0 && uint(r.SlotsUsed) >= r.Slots
	if r.Slots > 0 {
		slots = fmt.Sprintf("%d of %d used", r.SlotsUsed, r.Slots)
	}
	memory := fmt.Sprintf("%s of %s used, not limited", size(r.MemoryUsed), size(r.Memory))
	if r.MemoryReserve >= 0 {
		memory = fmt.Sprintf("%s of %s used, %s reserved for the host", size(r.MemoryUsed), size(r.Memory), size(r.MemoryReserve))
	}
	disk := fmt.Sprintf("%s of %s free, %s reserved, in %s", size(r.DiskFree), size(r.Disk), size(r.DiskReserve), r.DiskDir)
	part := section{title: "ROOM"}
	if s.Machines != nil {
		part.rows = append(part.rows, []cell{{text: "slots"}, {slots, warnIf(full)}}, plain("memory", memory))
	}
	part.rows = append(part.rows, []cell{{text: "disk"}, {visible(disk), warnIf(r.DiskFree <= r.DiskReserve)}})
	return part
}

func warnIf(is bool) string {
	if is {
		return yellow
	}
	return ""
}

func failureSection(s *status.Status) section {
	part := section{title: "LAST FAILURES", header: []string{"TIME", "STAGE", "JOB", "PROJECT", "CLASS", "ERROR"}}
	if s.Failures == nil {
		part.header, part.rows = nil, [][]cell{plain("not known: the setting log_file is empty")}
	}
	for _, f := range s.Failures {
		row := plain(f.Time.Local().Format(time.DateTime), visible(f.Stage), orDash(f.Job), orDash(f.Project), visible(f.Class), visible(joblog.OneLine(f.Error)))
		if f.Class == failure.System.String() {
			row[4].colour = red
		}
		part.rows = append(part.rows, row)
	}
	return part
}

// visible escapes what a terminal would obey: jobs choose the names of images.
func visible(text string) string { return command.EscapeControl(text) }

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return visible(text)
}

func size[N int64 | uint64](n N) string { return units.BytesSize(float64(n)) }

// age is the time since then, in the largest unit.
func age(now, then time.Time) string {
	if then.IsZero() {
		return "-"
	}
	return units.HumanDuration(max(0, now.Sub(then)))
}

// short shortens a digest, as images does.
func short(digest string) string { return digest[:min(len(digest), len("sha256:")+12)] }
