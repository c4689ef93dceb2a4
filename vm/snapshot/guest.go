package snapshot

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"strings"
	"time"

	"gitlab-sardine-executor/vm/guestssh"
)
import _ "embed" // the scripts

const (
	// settleTimeout bounds how long a guest that lets us in may go on with its boot.
	settleTimeout = 90 * time.Second
	// wakeTimeout bounds what a guest is told when it goes on.
	wakeTimeout = 20 * time.Second
)

// settleScript waits until the guest has done what it does at boot.
//
//go:embed settle.sh
var settleScript string

// wakeScript sets a guest right that was saved some time ago.
//
//go:embed wake.sh
var wakeScript string

// A Run runs a command in a guest and returns its exit status.
type Run func(ctx context.Context, cmd guestssh.Command) (int, error)

// Settle waits until the guest has booted to the end.
func Settle(ctx context.Context, run Run) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	return tell(ctx, run, settleScript)
}

// Wake tells a guest that has just gone on what it cannot know: how late it is, and
// that others have gone on with the same random numbers.
func Wake(ctx context.Context, run Run) error {
	ctx, cancel := context.WithTimeout(ctx, wakeTimeout)
	defer cancel()
	now := time.Now().Add(500 * time.Millisecond).Unix() // rounded
	return tell(ctx, run, fmt.Sprintf("now=%d seed=%s%s\n%s", now, rand.Text(), rand.Text(), wakeScript))
}

// asRoot runs a script, which it reads, as root.
const asRoot = `sh -c 'if [ "$(id -u)" = 0 ]; then exec sh; else exec sudo -n sh; fi'`

// tell runs one of our own scripts in the guest, as root.
func tell(ctx context.Context, run Run, script string) error {
	var said strings.Builder
	status, err := run(ctx, guestssh.Command{Line: asRoot, Stdin: strings.NewReader(script), Stdout: io.Discard, Stderr: &said})
	if err != nil {
		return err
	}
	if status != 0 {
		return fmt.Errorf("status %d: %.200s", status, lastLine(said.String()))
	}
	return nil
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}
