package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/internal/rollback"
	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/domain"
	"gitlab-sardine-executor/vm/savefile"
	"gitlab-sardine-executor/vm/seed"
	"gitlab-sardine-executor/vm/virt"
)

// restoreTimeout bounds how long libvirt may take to restore a machine; it reads the
// memory at the speed of the disk. It is a variable for tests.
var restoreTimeout = 60 * time.Second

const (
	// pipePoll is how often we look whether libvirt has read all.
	pipePoll = 2 * time.Millisecond
	// pipeGrace is more than libvirt needs between finding the pipe and opening it.
	pipeGrace = 50 * time.Millisecond
	// pipeSize is what a pipe may hold, in bytes: all that an unprivileged process may
	// ask for (fs.pipe-max-size, pipe(7)).
	pipeSize = 1 << 20
	// maxHostKey bounds a private host key, in bytes.
	maxHostKey = 64 << 10
)

// resumeIfPossible starts the machine from its snapshot; false if it has to boot.
// d is the machine as it would boot.
func (g *Guest) resumeIfPossible(ctx context.Context, d *libvirtxml.Domain, spec *Spec) (bool, error) {
	if g.host.snapshotObstacle(d, spec) != nil {
		return false, nil
	}
	key, err := g.host.snapshotKey(d, spec)
	if err != nil {
		return false, err
	}
	s := snapshotOf(spec.SnapshotDir, key)
	err = s.open()
	if err == nil {
		record := g.record
		err = errors.Join(g.resume(ctx, s, *spec), s.close())
		if err == nil {
			return true, nil
		}
		g.record, g.dom, g.network, g.making = record, nil, nil, nil
		if errors.Is(err, ErrNoSnapshot) {
			err = errors.Join(err, s.distrust(err))
		}
	}
	if errors.Is(err, ErrNoSnapshot) {
		g.Notes = append(g.Notes, err.Error())
		return false, nil
	}
	return false, err
}

// resume starts the machine from a snapshot. If it fails, nothing of the machine is
// left; the error is an [ErrNoSnapshot] if that was the fault of the snapshot.
func (g *Guest) resume(ctx context.Context, s *snapshot, spec Spec) (err error) {
	disks, err := s.disks(spec.Disks)
	if err != nil {
		return err
	}
	memory, err := os.Open(s.path(snapshotMemory))
	if err != nil {
		return noSnapshot("open its memory: %w", err)
	}
	defer memory.Close()
	head, err := savefile.Read(memory)
	if err != nil {
		return noSnapshot("%s: %w", memory.Name(), err)
	}
	d := &libvirtxml.Domain{}
	if err := d.Unmarshal(head.XML); err != nil {
		return noSnapshot("%s: the XML of the domain: %w", memory.Name(), err)
	}
	image := spec.Disks
	spec.Disks = disks
	spec.Record.HostKey = s.HostKey
	g.record = spec.Record
	undo := &rollback.Stack{}
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.Run())
		}
	}()
	files, err := g.makeFiles(ctx, &spec, undo)
	if err != nil {
		return err
	}
	if err := s.copyNVRAM(d, files.NVRAM); err != nil {
		return err
	}
	hostKey := filepath.Join(spec.CloneDir, spec.Name, seed.HostKeyFile)
	if err := disk.CopyFile(s.path(seed.HostKeyFile), hostKey, maxHostKey); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("copy the host key of the snapshot: %w", err)
	}
	if err := s.rename(d, &spec, files, hostKey); err != nil {
		return err
	}
	fifo := filepath.Join(spec.CloneDir, spec.Name, snapshotMemory)
	err = g.launch(ctx, d, &spec, undo, func(ctx context.Context, d *libvirtxml.Domain) error {
		return g.restore(ctx, d, head, memory, fifo)
	})
	if err != nil {
		return err
	}
	spec.Disks = append(disks, image...)
	if err := g.letGo(&spec); err != nil {
		return err
	}
	g.snapshot = s
	return nil
}

// copyNVRAM gives a clone UEFI variables of its own.
func (s *snapshot) copyNVRAM(d *libvirtxml.Domain, to string) error {
	if !disk.HasNVRAM(d.OS) {
		return nil
	}
	err := disk.CopyFile(s.path(nvramFile), to, disk.MaxNVRAM)
	if errors.Is(err, fs.ErrNotExist) {
		return noSnapshot("its UEFI variables are missing")
	}
	if err != nil {
		return fmt.Errorf("copy the UEFI variables of the snapshot: %w", err)
	}
	disk.SetNVRAM(d.OS, to)
	return nil
}

// rename makes of the saved domain that of another machine. Everything that the guest
// can see stays as it was.
func (s *snapshot) rename(d *libvirtxml.Domain, spec *Spec, files domain.Files, hostKey string) error {
	metadata, err := spec.Record.Metadata()
	if err != nil {
		return err
	}
	was := d.Name
	d.ID, d.Name, d.UUID, d.Metadata = nil, spec.Name, uuid.NewString(), metadata
	if d.GenID != nil {
		// The guest's kernel sees that it is another now, and has other random numbers.
		d.GenID.Value = uuid.NewString()
	}
	detachUserNetwork(d)
	domain.LogConsole(d, files.Console)
	for i := range d.SysInfo {
		if d.SysInfo[i].FWCfg == nil {
			continue
		}
		for e := range d.SysInfo[i].FWCfg.Entry {
			if entry := &d.SysInfo[i].FWCfg.Entry[e]; entry.File == filepath.Join(s.Files, seed.HostKeyFile) {
				entry.File = hostKey
			}
		}
	}
	for i := range d.Devices.Channels {
		if source := d.Devices.Channels[i].Source; source != nil && source.UNIX != nil && strings.Contains(source.UNIX.Path, was) {
			source.UNIX.Path = "" // libvirt's own choice, by the name of the domain
		}
	}
	return s.placeOverlays(d, files)
}

// placeOverlays gives each disk of the saved domain its new overlay.
func (s *snapshot) placeOverlays(d *libvirtxml.Domain, files domain.Files) error {
	for _, saved := range s.Disks {
		found := false
		for i := range d.Devices.Disks {
			device := &d.Devices.Disks[i]
			if disk.SourcePath(device) != saved.Was {
				continue
			}
			found = true
			device.Source = &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: files.Overlays[saved.Name]}}
			// libvirt finds out what it stands on: all of these headers were checked.
			device.BackingStore = nil
		}
		if !found {
			return noSnapshot("the saved machine has no disk %s", saved.Was)
		}
	}
	return nil
}

// restore starts the domain from the memory of the snapshot. libvirt is given a pipe
// in place of a file, so that the memory, which is as large as the guest, is not
// copied for each machine to have another name in its head.
func (g *Guest) restore(ctx context.Context, d *libvirtxml.Domain, head *savefile.Head, memory io.Reader, path string) error {
	doc, err := d.Marshal()
	if err != nil {
		return fmt.Errorf("write the domain of %s: %w", d.Name, err)
	}
	pipe, err := makePipe(path)
	if err != nil {
		return fmt.Errorf("make a pipe for libvirt: %w", err)
	}
	feeding, stop := context.WithCancel(ctx)
	fed := make(chan error, 1)
	go func() {
		fed <- feed(feeding, pipe, &savefile.Head{XML: doc, Cookie: head.Cookie, Running: true}, memory)
	}()
	restoring, cancel := context.WithTimeout(ctx, restoreTimeout)
	defer cancel()
	err = g.host.Restore(restoring, d.Name, path)
	if restoring.Err() != nil {
		// libvirt may be about to open it, and would wait for ever if we were gone then.
		err = errors.Join(err, os.Remove(path))
		time.Sleep(pipeGrace)
	}
	stop()
	if fedErr := <-fed; err != nil {
		if errors.Is(err, virt.ErrDisconnected) || ctx.Err() != nil {
			return err
		}
		return noSnapshot("%w", errors.Join(err, fedErr))
	}
	g.dom, err = g.host.Domain(ctx, d.Name)
	if errors.Is(err, virt.ErrNoDomain) {
		return noSnapshot("the machine ended as soon as it went on")
	}
	return err
}

// makePipe makes a named pipe and opens both of its ends: whoever opens it to read does
// not have to wait for us.
func makePipe(path string) (*os.File, error) {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, err
	}
	pipe, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	widen(pipe)
	return pipe, nil
}

// feed writes head and memory into the pipe, and closes it when all of it was read or
// ctx ends.
func feed(ctx context.Context, pipe *os.File, head *savefile.Head, memory io.Reader) error {
	defer pipe.Close()
	// Without a reader that goes on, a write ends when ctx does.
	defer context.AfterFunc(ctx, func() { pipe.SetDeadline(time.Now()) })()
	_, err := head.WriteTo(pipe)
	if err == nil {
		_, err = io.CopyBuffer(onlyWriter{pipe}, memory, make([]byte, pipeSize))
	}
	if err != nil {
		return fmt.Errorf("give libvirt the memory: %w", err)
	}
	for pipeHolds(pipe) > 0 {
		select {
		case <-time.After(pipePoll):
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// pipeHolds is how many bytes are in a pipe.
func pipeHolds(pipe *os.File) int {
	n := 0
	if conn, err := pipe.SyscallConn(); err == nil {
		conn.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	}
	return n
}

// widen makes a pipe hold more, for speed alone. ([os.File.Fd] would make it
// one that knows no deadlines.)
func widen(pipe *os.File) {
	if conn, err := pipe.SyscallConn(); err == nil {
		conn.Control(func(fd uintptr) { unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) })
	}
}

// onlyWriter keeps io.CopyBuffer to its buffer.
type onlyWriter struct{ io.Writer }
