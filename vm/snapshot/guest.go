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
	// settleTimeout bounds the rest of the boot after the first login.
	settleTimeout = 90 * time.Second
	// wakeTimeout bounds the script that a guest runs after it has resumed.
	wakeTimeout = 20 * time.Second
)

// settleScript waits for the end of the boot.
//
//go:embed settle.sh
var settleScript string

// wakeScript sets the clock of a resumed guest, and reseeds its random number generator.
//
//go:embed wake.sh
var wakeScript string

// A Run runs a command in a guest and returns its exit status.
type Run func(ctx context.Context, cmd guestssh.Command) (int, error)

// Settle waits for the end of the guest's boot.
func Settle(ctx context.Context, run Run) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	return tell(ctx, run, settleScript)
}

// Wake sets the clock of a guest that has just resumed, and reseeds its random number
// generator, whose state its clones share.
func Wake(ctx context.Context, run Run) error {
	ctx, cancel := context.WithTimeout(ctx, wakeTimeout)
	defer cancel()
	now := time.Now().Add(500 * time.Millisecond).Unix() // rounded
	return tell(ctx, run, fmt.Sprintf("now=%d seed=%s%s\n%s", now, rand.Text(), rand.Text(), wakeScript))
}

// asRoot runs the script on its standard input as root.
const asRoot = `sh -c 'if [ "$(id -u)" = 0 ]; then exec sh; else exec sudo -n sh; fi'`

// tell runs a script in the guest as root.
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
