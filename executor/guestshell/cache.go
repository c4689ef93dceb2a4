package guestshell

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strings"

	"al.essio.dev/pkg/shellescape"

	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/vm/guestssh"
)

// The guest does this work: the host never opens a cache.
var (
	//go:embed scripts/mount-cache.sh
	mountScript string
	//go:embed scripts/flush-cache.sh
	flushScript string
)

// A Cache describes the guest's cache to the guest.
type Cache struct {
	// Mode is disk or share; Label finds the disk or share; Dir is where to mount it.
	Mode, Label, Dir string
	// Fresh says that no guest has written to it.
	Fresh bool
}

// ErrCacheUnusable says that the cache must not be given to another job.
var ErrCacheUnusable = errors.New("the guest cannot use its cache")

// MountCache mounts the guest's cache. If the guest cannot mount it, the cache directory
// is on the guest's own disk, as without the setting cache: a warning, not an error. The
// mount may check or create a file system and change the owner of many files; only ctx
// bounds it.
func MountCache(ctx context.Context, guest Guest, cache Cache, log *joblog.Log) error {
	fresh := "no"
	if cache.Fresh {
		fresh = "yes"
	}
	var said beginning
	status, err := guest.Run(ctx, guestssh.Command{
		Line:   "sh -s " + shellescape.QuoteCommand([]string{cache.Mode, cache.Label, cache.Dir, fresh}),
		Stdin:  strings.NewReader(mountScript),
		Stdout: &said,
	})
	relay(said.String(), log)
	late := errors.Is(err, context.DeadlineExceeded)
	if err != nil && !late {
		return fmt.Errorf("mount the cache in the guest: %w", err)
	}
	if late {
		log.Warn("the guest could not mount its cache in time (the setting timeout): the job continues without it")
	}
	if late || status != 0 {
		return ErrCacheUnusable
	}
	return nil
}

// FlushCache makes the guest write its memory buffers to the cache disk.
func FlushCache(ctx context.Context, guest Guest, dir string) error {
	_, err := guest.Run(ctx, guestssh.Command{
		Line:  "sh -s " + shellescape.Quote(dir),
		Stdin: strings.NewReader(flushScript),
	})
	return err
}

// A beginning keeps the first kilobytes that are written to it: the guest is not
// trusted.
type beginning struct{ bytes.Buffer }

func (b *beginning) Write(p []byte) (int, error) {
	const most = 16 << 10
	b.Buffer.Write(p[:min(len(p), max(0, most-b.Len()))])
	return len(p), nil
}

// relay copies lines that begin with "say " or "warn " to the log.
func relay(text string, log *joblog.Log) {
	const most = 10 // lines
	for _, line := range strings.SplitN(text, "\n", most+1)[:min(most, strings.Count(text, "\n"))] {
		if text, ok := strings.CutPrefix(line, "warn "); ok {
			log.Warn("%.500s", text)
		} else if text, ok := strings.CutPrefix(line, "say "); ok {
			log.Say("%.500s", text)
		}
	}
}
