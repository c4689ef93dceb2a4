package guestshell

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"gitlab-sardine-executor/executor/joblog"
)

// The output of the guest is limited: the guest is not trusted.
func TestRelay(t *testing.T) {
	var said beginning
	fmt.Fprint(&said, "say one\nwarn two\nother three\n", strings.Repeat("say again\n", 100), "say ", strings.Repeat("x", 1<<20), "\n")
	if said.Len() > 16<<10 {
		t.Errorf("%d bytes were kept", said.Len())
	}
	var log bytes.Buffer
	relay(said.String(), joblog.New(&log))
	if want := "one\nWARNING: two\n" + strings.Repeat("again\n", 7); log.String() != want {
		t.Errorf("got %q, want %q", log.String(), want)
	}
}
