package diskfile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/packing"
	"gitlab-sardine-executor/oci/transport"
	"gitlab-sardine-executor/oci/unpack/filetype"
)

// A machineSource is an image of a virtual machine of this host, in the sardinecake format: as
// export would write it, but without times, so that equal machines are one image, and without
// compression, since the layers are only read to unpack them.
type machineSource struct {
	files      []packing.File
	identities map[string]string // by path, when the files were listed
	blobs      map[digest.Digest]func() (io.ReadCloser, error)
	manifest   []byte
}

// IdentifyMachine returns what changes if the machine or the content of its disks changes.
func IdentifyMachine(m *oci.Machine) (string, error) {
	files, err := packingList(m)
	if err != nil {
		return "", err
	}
	identities, err := identifyAll(files)
	if err != nil {
		return "", err
	}
	all := []string{m.Architecture, string(m.DomainXML)}
	for _, file := range files {
		all = append(all, file.Path+" "+file.Name+" "+file.Format+" "+identities[file.Path])
	}
	return digest.FromString(strings.Join(all, "\n")).String(), nil
}

// OpenMachine reads the disks of a machine and their backing files once, for the digest. They
// must not change before the image is closed.
func OpenMachine(ctx context.Context, m *oci.Machine) (transport.Source, error) {
	files, err := packingList(m)
	if err != nil {
		return nil, err
	}
	s := &machineSource{files: files, blobs: make(map[digest.Digest]func() (io.ReadCloser, error))}
	if s.identities, err = identifyAll(files); err != nil {
		return nil, err
	}
	if err := s.describe(ctx, m); err != nil {
		return nil, err
	}
	return s, nil
}

// packingList lists the files of a machine. As a disk of its own, each is only read if no other
// user of this host can replace it.
func packingList(m *oci.Machine) ([]packing.File, error) {
	disks := make([]packing.Disk, len(m.Disks))
	for i, d := range m.Disks {
		disks[i] = packing.Disk{Path: d.Path, Name: d.Name, Format: d.Format, CDROM: d.CDROM}
	}
	files, err := packing.List(disks, func(path string) (*os.File, string, error) {
		path = filepath.Clean(path)
		f, err := open(path)
		return f, path, err
	})
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w (run the driver as root, or keep the machine in qemu:///session)", err)
	case err != nil && !oci.IsPermanent(err):
		return nil, fmt.Errorf("%w: %w", oci.ErrFormat, err)
	case err != nil:
		return nil, err
	}
	for _, file := range files {
		if err := checkBacking(file); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// checkBacking refuses raw backing files that are no disks. QEMU writes to the header of an
// overlay that names them, so a guest that has taken over its QEMU could name a secret of the
// host. Nothing of the content may be in the error.
func checkBacking(file packing.File) error {
	if file.Top || file.Format != "raw" {
		return nil
	}
	f, err := open(file.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, headSize)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("reading the backing file %s: %w", file.Path, err)
	}
	if filetype.NotADisk(head[:n]) != "" {
		return fmt.Errorf("%w: the backing file %s is not a disk", oci.ErrInvalid, file.Path)
	}
	return nil
}

// headSize is how much of a file tells whether it is a disk, in bytes.
const headSize = 8 << 10

func identifyAll(files []packing.File) (map[string]string, error) {
	identities := make(map[string]string)
	for _, file := range files {
		identity, err := Identify(file.Path)
		if err != nil {
			return nil, err
		}
		identities[file.Path] = identity
	}
	return identities, nil
}

func (s *machineSource) describe(ctx context.Context, m *oci.Machine) error {
	layers := []v1.Descriptor{s.add(format.TypeDomainXML, m.DomainXML)}
	for _, file := range s.files {
		layer, err := s.addFile(ctx, file)
		if err != nil {
			return fmt.Errorf("disk %s: %w", file.Path, err)
		}
		layers = append(layers, layer)
	}
	config, err := json.Marshal(v1.Image{Platform: v1.Platform{Architecture: m.Architecture, OS: "linux"}, RootFS: v1.RootFS{Type: "layers"}})
	if err != nil {
		return err
	}
	s.manifest, err = json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Config: s.add(v1.MediaTypeImageConfig, config), Layers: layers,
	})
	return err
}

func (s *machineSource) add(mediaType string, content []byte) v1.Descriptor {
	d := digest.FromBytes(content)
	s.blobs[d] = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(string(content))), nil }
	return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(content))}
}

func (s *machineSource) addFile(ctx context.Context, file packing.File) (v1.Descriptor, error) {
	if i := strings.IndexFunc(file.Name, func(r rune) bool { return r > unicode.MaxLatin1 }); i >= 0 {
		return v1.Descriptor{}, fmt.Errorf("%w: the header of a gzip stream cannot hold its name: rename the file to ASCII characters", oci.ErrFormat)
	}
	open := func() (io.ReadCloser, error) { return s.openFile(file) }
	content, err := open()
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer content.Close()
	hash := digest.Canonical.Digester()
	size, err := io.CopyBuffer(hash.Hash(), &cancelled{ctx, content}, make([]byte, 1<<20))
	if err != nil {
		return v1.Descriptor{}, err
	}
	s.blobs[hash.Digest()] = open
	return v1.Descriptor{MediaType: file.MediaType() + "+gzip", Digest: hash.Digest(), Size: size}, nil
}

// openFile returns a file as a gzip stream that is not compressed. It ends with an error if the
// file has changed since it was listed.
func (s *machineSource) openFile(file packing.File) (io.ReadCloser, error) {
	content, err := file.Open()
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	go func() {
		z, err := gzip.NewWriterLevel(w, gzip.NoCompression)
		if err == nil {
			z.Name, z.OS = file.Name, 255
			_, err = io.CopyBuffer(struct{ io.Writer }{z}, struct{ io.Reader }{content}, make([]byte, 1<<20))
		}
		if err == nil {
			err = unchanged(file.Path, s.identities[file.Path])
		}
		if err == nil {
			err = z.Close()
		}
		w.CloseWithError(errors.Join(err, content.Close()))
	}()
	return r, nil
}

func unchanged(path, before string) error {
	if after, err := Identify(path); err != nil {
		return err
	} else if after != before {
		return fmt.Errorf("%w: the disk %s changed while it was read: shut the machine down first", oci.ErrFormat, path)
	}
	return nil
}

func (s *machineSource) Manifest(_ context.Context, d digest.Digest) ([]byte, string, error) {
	if d != "" && d != digest.FromBytes(s.manifest) {
		return nil, "", fmt.Errorf("%w: %s is not the virtual machine", oci.ErrNotFound, d)
	}
	return s.manifest, v1.MediaTypeImageManifest, nil
}

func (s *machineSource) Blob(ctx context.Context, desc v1.Descriptor) (io.ReadCloser, error) {
	open, ok := s.blobs[desc.Digest]
	if !ok {
		return nil, fmt.Errorf("%w: blob %s is not of the virtual machine", oci.ErrNotFound, desc.Digest)
	}
	content, err := open()
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{&cancelled{ctx, content}, content}, nil
}

func (s *machineSource) Close() error { return nil }
