package status

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"gitlab-sardine-executor/internal/fileutil"
)

const (
	// maxFailures is the number of failures in a [Status].
	maxFailures = 10
	// tailSize is the size, in bytes, of the end of the log that is read.
	tailSize = 1 << 20
)

// A Failure is a stage that failed for another reason than the job's script.
type Failure struct {
	Time    time.Time `json:"time"`
	Stage   string    `json:"stage"`
	Job     string    `json:"job"`
	Project string    `json:"project,omitempty"`
	Image   string    `json:"image,omitempty"`
	// Class is "build failure" or "system failure".
	Class string `json:"class"`
	// Error is the last line of the stage's log.
	Error string `json:"error"`
}

// failureMessage is the message of a failed stage in the administrator's log.
const failureMessage = "stage failed"

// addFailures adds the latest failures in the administrator's log, which is the only record
// of them.
func (s *Status) addFailures(logFile string) error {
	if logFile == "" {
		return nil
	}
	s.Failures = []Failure{}
	tail, err := readTail(logFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was logged yet
	}
	if err != nil {
		return err
	}
	for end := len(tail); end > 0 && len(s.Failures) < maxFailures; {
		begin := bytes.LastIndexByte(tail[:end], '\n') + 1
		if f, ok := parseFailure(string(tail[begin:end])); ok {
			s.Failures = append(s.Failures, f)
		}
		end = begin - 1
	}
	return nil
}

// readTail reads the end of a file. The first line can be incomplete.
func readTail(path string) ([]byte, error) {
	file, info, err := fileutil.OpenRegular(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if _, err := file.Seek(max(0, info.Size()-tailSize), io.SeekStart); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(file, tailSize))
}

// parseFailure reads a line of the log in either format; ok is false if it is not a failure.
func parseFailure(line string) (f Failure, ok bool) {
	if !strings.Contains(line, failureMessage) {
		return f, false
	}
	fields := parseText(line)
	if strings.HasPrefix(line, "{") {
		if fields, ok = parseJSON(line); !ok {
			return f, false
		}
	}
	at, err := time.Parse(time.RFC3339Nano, fields["time"])
	if err != nil || fields["msg"] != failureMessage {
		return f, false
	}
	return Failure{
		Time: at, Stage: fields["stage"], Job: fields["job"], Project: fields["project"], Image: fields["image"],
		Class: fields["class"], Error: fields["error"],
	}, true
}

// parseJSON reads the strings of a line that [log/slog.JSONHandler] wrote.
func parseJSON(line string) (map[string]string, bool) {
	var values map[string]any
	if json.Unmarshal([]byte(line), &values) != nil {
		return nil, false
	}
	fields := make(map[string]string)
	for name, value := range values {
		if text, ok := value.(string); ok {
			fields[name] = text
		}
	}
	return fields, true
}

// parseText reads a line that [log/slog.TextHandler] wrote: words such as key=value or
// key="quoted value". It stops at what it does not understand.
func parseText(line string) map[string]string {
	fields := make(map[string]string)
	for line != "" {
		name, rest, ok := strings.Cut(line, "=")
		if !ok {
			break
		}
		value, next, _ := strings.Cut(rest, " ")
		if strings.HasPrefix(rest, `"`) {
			quoted, err := strconv.QuotedPrefix(rest)
			if err != nil {
				break
			}
			value, _ = strconv.Unquote(quoted)
			next = strings.TrimPrefix(rest[len(quoted):], " ")
		}
		fields[name] = value
		line = next
	}
	return fields
}
