package domainxml_test

import (
	"os"
	"runtime/debug"
	"testing"
)

// The tests rebuild thousands of small documents. Collecting garbage less often saves much of
// their CPU time.
func TestMain(m *testing.M) {
	debug.SetGCPercent(400)
	os.Exit(m.Run())
}
