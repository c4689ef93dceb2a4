package policy

import (
	"io"
	"strings"
	"testing"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/failure"
	"gitlab-sardine-executor/executor/job"
	"gitlab-sardine-executor/executor/joblog"
)

func TestSize(t *testing.T) {
	const all = "allowed_job_variables = ['SARDINE_CPUS', 'SARDINE_MEMORY', 'SARDINE_DISK']\n"
	const hostCPUs = 8
	for _, test := range []struct {
		name, toml string
		variables  map[string]string
		want       Size
		refused    bool
	}{
		{name: "the image decides"},
		{name: "the settings", toml: "cpus = 3\nmemory = '2GiB'\ndisk = '20GiB'", want: Size{CPUs: 3, Memory: 2 << 30, Disk: 20 << 30}},
		{name: "auto", toml: "cpus = 'auto'\nconcurrency = 3", want: Size{CPUs: 2}},
		{name: "auto with a CPU for each", toml: "cpus = 'auto'", want: Size{CPUs: 1}},
		{name: "auto with more machines than CPUs", toml: "cpus = 'auto'\nconcurrency = 100", want: Size{CPUs: 1}},
		{
			name: "the job", toml: all + "cpus = 3",
			variables: map[string]string{"SARDINE_CPUS": "5", "SARDINE_MEMORY": "1g", "SARDINE_DISK": "30GiB"},
			want:      Size{CPUs: 5, Memory: 1 << 30, Disk: 30 << 30, Chosen: true},
		},
		{name: "more disk than allowed", toml: all + "max_disk = '10GiB'", variables: map[string]string{"SARDINE_DISK": "30GiB"}, want: Size{Disk: 10 << 30, Chosen: true}},
		{name: "empty variable", variables: map[string]string{"SARDINE_CPUS": ""}},
		{name: "not allowed", variables: map[string]string{"SARDINE_CPUS": "2"}, refused: true},
		{name: "another is allowed", toml: "allowed_job_variables = ['SARDINE_DISK']", variables: map[string]string{"SARDINE_CPUS": "2"}, refused: true},
		{name: "no number", toml: all, variables: map[string]string{"SARDINE_CPUS": "2; reboot"}, refused: true},
		{name: "no CPU", toml: all, variables: map[string]string{"SARDINE_CPUS": "0"}, refused: true},
		{name: "negative", toml: all, variables: map[string]string{"SARDINE_MEMORY": "-1"}, refused: true},
		{name: "overflow", toml: all, variables: map[string]string{"SARDINE_CPUS": "18446744073709551616"}, refused: true},
		{name: "no unit for memory", toml: all, variables: map[string]string{"SARDINE_MEMORY": "512"}, refused: true},
		{name: "hardly any memory", toml: all, variables: map[string]string{"SARDINE_MEMORY": "15MiB"}, refused: true},
		{name: "the least memory", toml: all, variables: map[string]string{"SARDINE_MEMORY": "16m"}, want: Size{Memory: 16 << 20, Chosen: true}},
		{name: "no unit for the disk", toml: all, variables: map[string]string{"SARDINE_DISK": "40"}, refused: true},
		{name: "no disk", toml: all, variables: map[string]string{"SARDINE_DISK": "0"}, refused: true},
		{name: "largest values", toml: all, variables: map[string]string{"SARDINE_CPUS": "65535", "SARDINE_MEMORY": "8191PiB", "SARDINE_DISK": "8191PiB"}, want: Size{CPUs: 65535, Memory: 8191 << 50, Disk: 1 << 40, Chosen: true}},
		{name: "too many CPUs", toml: all, variables: map[string]string{"SARDINE_CPUS": "65536"}, refused: true},
		{name: "not a number", toml: all, variables: map[string]string{"SARDINE_MEMORY": "NaN"}, refused: true},
		{name: "no size", toml: all, variables: map[string]string{"SARDINE_DISK": "huge"}, refused: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			settings, err := config.Parse([]byte("[defaults]\n" + test.toml))
			if err != nil {
				t.Fatal(err)
			}
			p := Policy{Settings: settings, Job: job.Job{Variables: test.variables}}
			got, err := p.Size(settings.For("x"), hostCPUs, joblog.New(io.Discard))
			if refused := err != nil && failure.Classify(err) == failure.Build; refused != test.refused || !refused && (err != nil || got != test.want) {
				t.Errorf("got %+v, %v; want %+v, refused: %v", got, err, test.want, test.refused)
			}
		})
	}
	err := (&Size{}).grant("SARDINE_MEMORY", "1m")
	if err == nil || !strings.Contains(err.Error(), "16MiB") {
		t.Errorf("the error does not name the minimum: %v", err)
	}
}
