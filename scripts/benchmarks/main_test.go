package main

import (
	"encoding/xml"
	"io"
	"strings"
	"testing"
)

const output = `commit: 0123456
cpu: Example
BenchmarkStages/session-2         	       1	89642254511 ns/op	 5.0 prepare-s	 4.0 virsh-create-banner-s 1.25 prepare/virsh-create-banner 0.2 run-s 0.1 ssh-true-s 2 run/ssh-true 0.3 cleanup-s 0.3 virsh-destroy-s 1 cleanup/virsh-destroy
--- BENCH: BenchmarkStages/session-2
    bench_test.go:109: config    0.083 s
BenchmarkPull/gzip 1 2.5 pull-s 10 skopeo-gzip-s 0.25 pull/skopeo-gzip
BenchmarkOutput-2 1 300 MB/s
PASS
`

func TestPage(t *testing.T) {
	r, err := Parse(output)
	if err != nil {
		t.Fatal(err)
	}
	page := Page(r)
	for _, want := range []string{
		"- commit: 0123456\n", "| `prepare`, ordinary user | 5.00 | `virsh create`, until the SSH banner | 4.00 | 1.25 | 1.10 |",
		"| one gzip layer | 2.50 | `skopeo copy`, `gzip -dc` | 10.0 | 0.25 | 0.35 |", "| Output | MB/s | 300 |",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
	if strings.Contains(page, "idle machine") {
		t.Errorf("the page has a row that was not measured:\n%s", page)
	}
}

func TestPlots(t *testing.T) {
	r, err := Parse(output)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range plots {
		drawing, err := p.Draw(r)
		if err != nil {
			t.Fatal(err)
		}
		for d := xml.NewDecoder(strings.NewReader(drawing)); ; {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%s: %v\n%s", p.File, err, drawing)
			}
		}
		if strings.Contains(drawing, "snapshot") {
			t.Errorf("%s has a bar that was not measured", p.File)
		}
	}
	if _, err := plots[0].Draw(&Report{}); err == nil {
		t.Error("a plot of nothing was drawn")
	}
}

func TestParseRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":  "PASS\n",
		"a word":   "BenchmarkX 1 many s\n",
		"the same": "BenchmarkX-2 1 1 s\nBenchmarkX-2 1 2 s\n",
	} {
		if _, err := Parse(text); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
