package executor

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/job"
	"gitlab-sardine-executor/executor/joblog"
)

// A job without a known owner has no cache, and its log says so.
func TestNoOwnerNoCache(t *testing.T) {
	for _, test := range []struct {
		setting string
		owner   job.Owner
		has     bool
		says    string
	}{
		{"none", job.Owner{Instance: "https://host", Project: "1"}, false, ""},
		{"disk", job.Owner{Instance: "https://host", Project: "1"}, true, ""},
		{"disk", job.Owner{Instance: "https://host"}, false, "JOB_RESPONSE_FILE"},
		{"share", job.Owner{Project: "1"}, false, "JOB_RESPONSE_FILE"},
	} {
		var log bytes.Buffer
		settings := parse(t, fmt.Sprintf("[defaults]\ncache = %q", test.setting))
		d := &Driver{Settings: settings, Job: job.Job{Owner: test.owner}, Log: joblog.New(&log)}
		cache := d.cache(settings.For("x"), config.Dirs{Caches: "/caches"})
		if (cache != nil) != test.has || !strings.Contains(log.String(), test.says) || test.says == "" && log.Len() > 0 {
			t.Errorf("cache = %q for %+v: got %+v and %q", test.setting, test.owner, cache, log.String())
		}
	}
}

// Guests that run Windows cannot mount a cache.
func TestNoCacheForWindows(t *testing.T) {
	owner := job.Owner{Instance: "https://gitlab.example.com", Project: "42", Path: "group/project"}
	for section, want := range map[string]bool{"shell = 'bash'": true, "shell = 'pwsh'": true, "shell = 'powershell'": false} {
		settings := parse(t, "[defaults]\ncache = 'disk'\n[[image]]\nmatch = '**'\n"+section)
		d := &Driver{Settings: settings, Job: job.Job{ID: "1", Owner: owner}}
		if got := d.cache(settings.For("x"), config.Dirs{Caches: "/caches"}); (got != nil) != want {
			t.Errorf("%s: cache %+v", section, got)
		}
	}
}
