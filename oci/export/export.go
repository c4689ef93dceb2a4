package export

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"syscall"
	"time"
	"unicode"

	"github.com/docker/go-units"
	"github.com/klauspost/pgzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/internal/readers"
	"gitlab-sardine-executor/oci/layout"
	"gitlab-sardine-executor/oci/packing"
	"gitlab-sardine-executor/oci/transport"
	"gitlab-sardine-executor/oci/unpack/decompress"
)

// Options of [Export].
type Options struct {
	// Disks of the machine. The backing files of a qcow2 disk are packed as well, before
	// it.
	Disks []Disk
	// DomainXML is packed unchanged; it must use the names of Disks. nil means a default
	// machine with these disks.
	DomainXML []byte
	Guest     oci.GuestConfig
	// Labels of the image's config.
	Labels map[string]string
	// Architecture is Go's name; empty means that of this host.
	Architecture string
	// OS is Go's name; empty means linux.
	OS string
	// Created is the creation time of the image; zero means now.
	Created time.Time
	// Format is "sardinecake" or "chunked" (docs/image-format.md); empty means
	// sardinecake.
	Format string
	// ChunkSize splits disks into layers. In the sardinecake format, layers have this many
	// compressed bytes, and 0 means one layer for each disk. In the chunked format, a layer
	// has this many bytes of the disk, a multiple of 64 KiB; 0 means 2 MiB, or more for
	// large disks.
	ChunkSize int64
	// Level of gzip (1 to 9, default 6) or zstd (1 to 22, default 3); 0 means the default.
	Level int
	// Survey of files among the disks; may be nil. It is of use for the chunked format.
	Survey *Survey
	// Progress may be nil.
	Progress oci.Progress
	// Check judges the image before it gets its tag; its reference has the digest. After an
	// error nothing of the image stays. It may be nil. No other process writes to the layout
	// meanwhile.
	Check func(context.Context, oci.Reference) error
}

// A Disk is a disk file on this host, which is trusted.
type Disk = packing.Disk

// Export packs disk files as an image in the OCI layout to, which is created if necessary. It
// moves the tag ("latest" if to has none) to the new image at the end; after an error the tag
// is unchanged. The disk files must not change during the export. It returns the digest of
// the manifest.
func Export(ctx context.Context, to oci.Reference, o Options) (digest.Digest, error) {
	if !to.IsLayout() || to.Digest() != "" {
		return "", fmt.Errorf("%w: %s: export writes to a layout: oci:PATH or oci:PATH:TAG", oci.ErrReference, to)
	}
	if err := o.check(); err != nil {
		return "", fmt.Errorf("exporting to %s: %w", to, err)
	}
	files, err := packing.List(o.Disks, packing.OpenTrusted)
	if err != nil {
		return "", fmt.Errorf("exporting to %s: %w", to, err)
	}
	tag := to.Tag()
	if tag == "" {
		tag = "latest"
	}
	if o.Format != format.Chunked {
		for _, file := range files {
			if err := gzipName(file.Name); err != nil {
				return "", fmt.Errorf("exporting to %s: disk %s: %w", to, file.Path, err)
			}
		}
	}
	progress := oci.ProgressOrDiscard(o.Progress)
	dest, err := layout.OpenWriter(ctx, to.LayoutDir(), tag, func() {
		progress.Waiting("for another process that writes to " + to.LayoutDir())
	})
	if err != nil {
		return "", fmt.Errorf("exporting to %s: %w", to, err)
	}
	e := &exporter{dest: dest, to: to, options: o, created: o.Created.UTC(), progress: progress}
	if o.Created.IsZero() {
		e.created = time.Now().UTC()
	}
	d, err := e.run(ctx, files)
	if err != nil {
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			// The compressed size is not known yet.
			err = fmt.Errorf("%w (as much as %s may be needed in %s)", err, units.BytesSize(float64(packing.TotalSize(files))), to.LayoutDir())
		}
		// An export cannot resume.
		err = errors.Join(err, dest.Discard())
	}
	if err := errors.Join(err, dest.Close()); err != nil {
		return "", fmt.Errorf("exporting to %s: %w", to, err)
	}
	return d, nil
}

// minPiece is the minimum size of a layer, in bytes. The first layer must hold the complete
// gzip header with the file name: other tools read it there.
const minPiece = 1 << 10

func (o Options) check() error {
	switch {
	case o.Format != "" && o.Format != format.Sardinecake && o.Format != format.Chunked:
		return fmt.Errorf("format %q: want %s or %s", o.Format, format.Sardinecake, format.Chunked)
	case o.ChunkSize < 0 || o.ChunkSize > 0 && o.ChunkSize < minPiece:
		return fmt.Errorf("chunks of %d bytes: want at least %d", o.ChunkSize, minPiece)
	case o.Format == format.Chunked && (o.ChunkSize%format.ChunkUnit != 0 || o.ChunkSize > format.MaxChunkSize):
		return fmt.Errorf("chunks of %d bytes: want a multiple of %d, at most %d", o.ChunkSize, format.ChunkUnit, format.MaxChunkSize)
	}
	return nil
}

// An exporter writes layers and collects the entries of the manifest and the config.
type exporter struct {
	dest     *layout.Writer
	to       oci.Reference
	options  Options
	created  time.Time
	progress oci.Progress

	layers  []v1.Descriptor
	diffIDs []digest.Digest
	history []v1.History
}

func (e *exporter) run(ctx context.Context, files []packing.File) (digest.Digest, error) {
	arch, system := oci.Architecture(e.options.Architecture), e.options.OS
	if system == "" {
		system = "linux"
	}
	domain := e.options.DomainXML
	if domain == nil {
		var err error
		if domain, err = defaultDomain(arch, files); err != nil {
			return "", err
		}
	}
	if err := e.addBytes(ctx, format.TypeDomainXML, domain); err != nil {
		return "", err
	}
	if g := e.options.Guest; len(g.Users)+len(g.Services) > 0 {
		raw, err := json.Marshal(g)
		if err != nil {
			return "", err
		}
		if err := e.addBytes(ctx, format.TypeGuestConfig, raw); err != nil {
			return "", err
		}
	}
	add := e.addDisk
	if e.options.Format == format.Chunked {
		add = e.addChunkedDisk
	}
	for _, file := range files {
		if err := add(ctx, file); err != nil {
			return "", fmt.Errorf("disk %s: %w", file.Path, err)
		}
	}
	return e.commit(ctx, arch, system)
}

func (e *exporter) addBytes(ctx context.Context, mediaType string, raw []byte) error {
	desc, err := e.put(ctx, mediaType, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	e.addFile(desc.Digest, "")
	e.layers = append(e.layers, desc)
	return nil
}

// addFile adds one uncompressed file to the config, whatever the number of its layers.
func (e *exporter) addFile(diffID digest.Digest, by string) {
	e.diffIDs = append(e.diffIDs, diffID)
	e.history = append(e.history, v1.History{Created: &e.created, CreatedBy: by})
}

func (e *exporter) put(ctx context.Context, mediaType string, r io.Reader) (v1.Descriptor, error) {
	d, size, err := e.dest.AddBlob(ctx, r)
	if err != nil {
		return v1.Descriptor{}, err
	}
	return v1.Descriptor{MediaType: mediaType, Digest: d, Size: size}, nil
}

// addDisk compresses a disk in the background and writes its layers.
func (e *exporter) addDisk(ctx context.Context, file packing.File) (err error) {
	content, err := file.Open()
	if err != nil {
		return err
	}
	defer content.Close()
	transfer := e.progress.Start(file.Name, content.Size)
	defer func() { transfer.Done(err) }()
	hash := digest.Canonical.Digester()
	r, w := io.Pipe()
	go func() {
		raw := io.TeeReader(readers.Counting(content, transfer), hash.Hash())
		w.CloseWithError(compress(w, raw, file, e.options.Level))
	}()
	// This ends the goroutine above.
	defer r.Close()
	buffered := bufio.NewReaderSize(r, readers.BufferSize)
	for n := 0; ; n++ {
		mediaType := file.MediaType() + "+gzip"
		if n > 0 {
			mediaType += fmt.Sprintf(";chunk=%d", n)
		}
		var piece io.Reader = buffered
		if e.options.ChunkSize > 0 {
			piece = &pieceReader{buffered, e.options.ChunkSize}
		}
		desc, err := e.put(ctx, mediaType, piece)
		if err != nil {
			return err
		}
		e.layers = append(e.layers, desc)
		if _, err := buffered.Peek(1); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
	}
	e.addFile(hash.Digest(), "gzip "+file.Name)
	return nil
}

// A pieceReader reads the next layer of a gzip stream: left bytes, or one more if the next
// layer would begin with the magic bytes of gzip, which the Python tool would take for
// another disk.
type pieceReader struct {
	stream *bufio.Reader
	left   int64
}

func (p *pieceReader) Read(b []byte) (int, error) {
	if p.left <= 0 {
		// At the end of the stream, Peek returns less, and an error that the next Read returns
		// as well.
		if next, _ := p.stream.Peek(len(decompress.MagicGzip)); !bytes.Equal(next, decompress.MagicGzip) {
			return 0, io.EOF
		}
		p.left = 1
	}
	n, err := p.stream.Read(b[:min(int64(len(b)), p.left)])
	p.left -= int64(n)
	return n, err
}

// gzipName checks that a gzip header can hold a name (RFC 1952, 2.3.1).
func gzipName(name string) error {
	for _, r := range name {
		if r > unicode.MaxLatin1 {
			return fmt.Errorf("the name %q has the character %q, which a gzip header cannot hold: rename the file, or use the format %s", name, r, format.Chunked)
		}
	}
	return nil
}

// compress writes r as one gzip stream with the same header as the Python tool: name and
// time of the file, no operating system.
func compress(w io.Writer, r io.Reader, file packing.File, level int) error {
	if level == 0 {
		level = 6
	}
	z, err := pgzip.NewWriterLevel(w, level)
	if err != nil {
		return fmt.Errorf("gzip level %d: %w", level, err)
	}
	if err := z.SetConcurrency(1<<20, runtime.GOMAXPROCS(0)); err != nil {
		return err
	}
	z.Name, z.ModTime, z.OS = file.Name, file.Modified, 255
	_, err = io.CopyBuffer(z, readers.Only(r), make([]byte, readers.BufferSize))
	return errors.Join(err, z.Close())
}

func (e *exporter) commit(ctx context.Context, arch, system string) (digest.Digest, error) {
	config, err := json.Marshal(v1.Image{
		Created:  &e.created,
		Platform: v1.Platform{Architecture: arch, OS: system},
		Config:   v1.ImageConfig{Labels: e.options.Labels},
		RootFS:   v1.RootFS{Type: "layers", DiffIDs: e.diffIDs},
		History:  e.history,
	})
	if err != nil {
		return "", err
	}
	desc, err := e.put(ctx, v1.MediaTypeImageConfig, bytes.NewReader(config))
	if err != nil {
		return "", err
	}
	manifest, err := json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest,
		Config:    desc,
		Layers:    e.layers,
	})
	if err != nil {
		return "", err
	}
	if len(manifest) > transport.MaxManifest {
		return "", fmt.Errorf("a manifest of %d bytes for %d layers: registries accept %d; use larger chunks", len(manifest), len(e.layers), transport.MaxManifest)
	}
	top := transport.RawManifest{Raw: manifest, MediaType: v1.MediaTypeImageManifest, Digest: digest.FromBytes(manifest)}
	if err := e.check(ctx, top); err != nil {
		return "", err
	}
	if err := e.dest.Commit(ctx, top); err != nil {
		return "", err
	}
	return top.Digest, nil
}

// check passes the complete image to [Options.Check].
func (e *exporter) check(ctx context.Context, top transport.RawManifest) error {
	if e.options.Check == nil {
		return nil
	}
	if err := e.dest.Stage(ctx, top); err != nil {
		return err
	}
	return e.options.Check(ctx, e.to.AtDigest(top.Digest))
}
