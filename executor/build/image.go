package build

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/export"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/vm/define"
)

// export packs the disks of the machine, which has powered off, on top of those of the base.
func (b *builder) export(ctx context.Context, m *machine, survey *export.Survey) (digest.Digest, error) {
	disks, domain, err := newDisks(m.image, m.started.Overlays)
	if err != nil {
		return "", fmt.Errorf("export the disks of the machine: %w", err)
	}
	progress := b.Progress("Exporting")
	// Bars that are still drawn would overwrite what the verification says.
	closeProgress := sync.OnceFunc(progress.Close)
	defer closeProgress()
	o := export.Options{
		Disks: disks, DomainXML: domain, Guest: b.guestConfig(m.image.Guest), Labels: b.Labels,
		Architecture: m.image.Architecture, OS: m.image.OS, Format: b.Format, Survey: survey, Progress: progress,
	}
	began := time.Now()
	o.Check = func(ctx context.Context, image oci.Reference) error {
		closeProgress()
		b.Log.Say("Exported (%s)", joblog.Seconds(time.Since(began)))
		if b.NoVerify {
			return nil
		}
		return b.verify(ctx, image)
	}
	return export.Export(ctx, b.To, o)
}

// A survey reads the disks of the base while the machine runs, so that the export has to read only
// what is new.
type survey struct {
	cancel context.CancelFunc
	done   chan struct{}
	result *export.Survey
}

// survey starts a survey. If it fails the build continues, and the export reads the disks.
func (b *builder) survey(ctx context.Context, base *oci.Image) *survey {
	ctx, cancel := context.WithCancel(ctx)
	s := &survey{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		if b.Format == format.Chunked {
			s.result, _ = export.TakeSurvey(ctx, b.To, export.Options{Disks: topDisks(base), Format: b.Format})
		}
	}()
	return s
}

// wait returns the result, which may be nil.
func (s *survey) wait() *export.Survey {
	<-s.done
	return s.result
}

// stop ends the survey, and waits until it no longer reads a disk.
func (s *survey) stop() {
	s.cancel()
	<-s.done
}

// topDisks are the disks of an image that back no other.
func topDisks(image *oci.Image) []export.Disk {
	backs := make(map[string]bool)
	for _, d := range image.Disks {
		backs[d.Backing] = true
	}
	var top []export.Disk
	for _, d := range image.Disks {
		if !backs[d.Name] {
			top = append(top, export.Disk{Path: filepath.Join(image.Dir, d.Name), Name: d.Name, Format: d.Format, CDROM: d.CDROM})
		}
	}
	return top
}

// newDisks returns the disks of the new image and its domain XML. Each overlay replaces a disk
// of the base, which becomes its backing file.
func newDisks(base *oci.Image, overlays map[string]string) ([]export.Disk, []byte, error) {
	var disks []export.Disk
	renamed := make(map[string]string)
	for _, d := range base.Disks {
		if overlay, ok := overlays[d.Name]; ok {
			disk := export.Disk{Path: overlay, Name: d.Name, Format: "qcow2"}
			if d.Format != "qcow2" {
				disk.Name = filepath.Base(overlay)
				renamed[d.Name] = disk.Name
			}
			disks = append(disks, disk)
		} else if d.CDROM {
			disks = append(disks, export.Disk{Path: filepath.Join(base.Dir, d.Name), Name: d.Name, Format: d.Format, CDROM: true})
		}
	}
	if base.DomainXML == nil || len(renamed) == 0 {
		return disks, base.DomainXML, nil
	}
	doc, err := define.RenameDisks(base.DomainXML, renamed)
	return disks, doc, err
}

// guestConfig puts the user of the build first, if one was chosen.
func (b *builder) guestConfig(guest oci.GuestConfig) oci.GuestConfig {
	if b.User == "" {
		return guest
	}
	users := []oci.User{{Username: b.User}}
	for _, user := range guest.Users {
		if user.Username == b.User {
			users[0] = user
		}
	}
	rest := slices.DeleteFunc(slices.Clone(guest.Users), func(u oci.User) bool { return u.Username == b.User })
	guest.Users = append(users, rest...)
	return guest
}
