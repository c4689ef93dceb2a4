package metrics

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// labelValues are the labels of docs/metrics.md; nil for values that the monitoring system
// chooses.
var labelValues = map[string][]string{
	"result":   {"success", "script_failure", "build_failure", "system_failure", "cancelled"},
	"phase":    {"pull", "snapshot", "boot", "prepare", "run", "cleanup"},
	"from":     {"boot", "snapshot", "idle"},
	"mode":     {"disk", "share"},
	"le":       nil,
	"instance": nil,
	"match":    nil,
	"image":    nil,
	"reason":   nil,
	"file":     nil,
}

// checkExpression reports names of metrics and labels that do not exist, and returns those
// of this program that it uses.
func checkExpression(t *testing.T, where, expr string) (used []string) {
	t.Helper()
	for _, name := range regexp.MustCompile(`\bsardine_[a-z_]+`).FindAllString(expr, -1) {
		family := name
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base, ok := strings.CutSuffix(name, suffix); ok && metricHelp[base] != "" {
				family = base
			}
		}
		if metricHelp[family] == "" {
			t.Errorf("%s: there is no metric %s", where, name)
		}
		if family == "sardine_phase_seconds" && family == name {
			t.Errorf("%s: %s is a histogram: use its _bucket, _sum or _count", where, name)
		}
		used = append(used, family)
	}
	for _, selector := range regexp.MustCompile(`([a-z_]+)\s*(?:=~|!=|!~|=)\s*"([^"]*)"`).FindAllStringSubmatch(expr, -1) {
		values, ok := labelValues[selector[1]]
		if !ok || values != nil && !slices.Contains(values, selector[2]) {
			t.Errorf("%s: there is no %s", where, selector[0])
		}
	}
	for _, by := range regexp.MustCompile(`by \(([^)]*)\)`).FindAllStringSubmatch(expr, -1) {
		for _, label := range strings.Split(by[1], ",") {
			if _, ok := labelValues[strings.TrimSpace(label)]; !ok {
				t.Errorf("%s: there is no label %q", where, label)
			}
		}
	}
	for _, pair := range []string{"()", "{}", "[]"} {
		if strings.Count(expr, pair[:1]) != strings.Count(expr, pair[1:]) {
			t.Errorf("%s: %q has not as many %c as %c", where, expr, pair[0], pair[1])
		}
	}
	return used
}

// The dashboard shows every metric, and only those that exist.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("../../contrib/grafana/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			ID      int
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr, LegendFormat string }
		}
		Templating struct {
			List []struct{ Name, Query string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	var used []string
	ids := map[int]bool{}
	for _, panel := range dashboard.Panels {
		if ids[panel.ID] || panel.Title == "" || len(panel.Targets) == 0 || panel.GridPos.X+panel.GridPos.W > 24 {
			t.Errorf("panel %+v", panel)
		}
		ids[panel.ID] = true
		for _, target := range panel.Targets {
			used = append(used, checkExpression(t, panel.Title, target.Expr)...)
			for _, label := range regexp.MustCompile(`{{(\w+)}}`).FindAllStringSubmatch(target.LegendFormat, -1) {
				if !strings.Contains(target.Expr, label[1]) {
					t.Errorf("%s: the legend shows the label %s, which the expression drops", panel.Title, label[1])
				}
			}
		}
	}
	for _, variable := range dashboard.Templating.List {
		checkExpression(t, "variable "+variable.Name, variable.Query)
	}
	for name := range metricHelp {
		if !slices.Contains(used, name) {
			t.Errorf("the dashboard does not show %s", name)
		}
	}
}

// The example of alert rules uses metrics that exist.
func TestAlerts(t *testing.T) {
	text, err := os.ReadFile("../../contrib/prometheus/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	// Each rule begins with its name; its expression ends before the next key.
	rules := regexp.MustCompile(`(?s)- alert: (\w+)\n\s+expr: (.*?)\n\s+(?:for|labels):`).FindAllStringSubmatch(string(text), -1)
	if len(rules) != strings.Count(string(text), "- alert:") || len(rules) == 0 {
		t.Fatalf("found %d rules of %d", len(rules), strings.Count(string(text), "- alert:"))
	}
	for _, rule := range rules {
		checkExpression(t, rule[1], rule[2])
	}
}
