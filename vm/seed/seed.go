package seed

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/kdomanski/iso9660"
	"golang.org/x/crypto/ssh"
	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/guestssh"
)

// DefaultUser is the user that a guest gets when nobody says who shall log in. It is
// none of a distribution's own, so that it is the same everywhere.
const DefaultUser = "ci"

// seedLabel is the label of the file system by which cloud-init's data source
// NoCloud knows its seed.
const seedLabel = "CIDATA"

// A Seed lets us log in to a guest whose image brings no login of ours: it tells
// the guest, while it boots, of a user with a key of this one job, and of the host
// key to have, so that not even the first connection is taken on trust.
//
// It is handed in twice: to cloud-init, on a CD-ROM that is ejected once the guest
// is ready, and to systemd, as credentials. Of the secrets it holds only the host
// key is given to the guest, whose own secret it is.
type Seed struct {
	user    string
	key     ed25519.PrivateKey
	hostKey ed25519.PrivateKey
	// hostname of the guest; empty for the domain's name.
	hostname string
}

// userName is what useradd(8) takes everywhere; a user's name goes into files of
// several syntaxes.
var userName = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)

// New makes the keys. An empty user means [DefaultUser].
func New(user string) (*Seed, error) {
	if user == "" {
		user = DefaultUser
	}
	if !userName.MatchString(user) {
		return nil, fmt.Errorf("%w: %.40q is no name for a user that a guest without a password could be given (want %s)", errdefs.ErrInvalid, user, userName)
	}
	s := &Seed{user: user}
	for _, key := range []*ed25519.PrivateKey{&s.key, &s.hostKey} {
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("make the keys of this job: %w", err)
		}
		*key = private
	}
	return s, nil
}

// WithHostname is the same seed for a guest of that host name.
func (s *Seed) WithHostname(name string) *Seed {
	named := *s
	named.hostname = name
	return &named
}

// User is the name of the user that the guest gets.
func (s *Seed) User() string { return s.user }

// Login is how to log in to the guest.
func (s *Seed) Login() guestssh.Login { return guestssh.Login{User: s.user, Key: s.key, Late: true} }

// HostKey is the public host key as in known_hosts, without the host.
func (s *Seed) HostKey() string { return publicLine(s.hostKey) }

func publicLine(key ed25519.PrivateKey) string {
	public, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		panic(err) // it is an ed25519 key
	}
	return guestssh.FormatKey(public)
}

// privatePEM is the host key as sshd reads it.
func (s *Seed) privatePEM() ([]byte, error) {
	block, err := ssh.MarshalPrivateKey(s.hostKey, "")
	if err != nil {
		return nil, fmt.Errorf("write the host key of this job: %w", err)
	}
	return pem.EncodeToMemory(block), nil
}

// Attach gives the seed to a machine; its files are made in dir, where they are
// needed only until QEMU has them.
func (s *Seed) Attach(d *libvirtxml.Domain, dir string) error {
	private, err := s.privatePEM()
	if err != nil {
		return err
	}
	iso, err := s.iso(cmp.Or(s.hostname, d.Name), string(private))
	if err != nil {
		return fmt.Errorf("make the seed for cloud-init: %w", err)
	}
	path := filepath.Join(dir, "seed.iso")
	if err := os.WriteFile(path, iso, 0o600); err != nil {
		return fmt.Errorf("make the seed for cloud-init: %w", err)
	}
	addSeedDrive(d, path)
	return s.addCredentials(d, private, dir)
}

// userData is cloud-config as far as we use it. JSON is YAML.
type userData struct {
	Users          []seedUser        `json:"users"`
	SSHKeys        map[string]string `json:"ssh_keys"`
	SSHDeleteKeys  bool              `json:"ssh_deletekeys"`
	SSHGenKeyTypes []string          `json:"ssh_genkeytypes"`
	DisableRoot    bool              `json:"disable_root"`
	ManageHosts    string            `json:"manage_etc_hosts"`
}

type seedUser struct {
	Name           string   `json:"name"`
	Sudo           string   `json:"sudo,omitempty"`
	LockPassword   bool     `json:"lock_passwd"`
	AuthorizedKeys []string `json:"ssh_authorized_keys"`
}

// sudoRule lets the job become root of its own machine, as cloud images do.
const sudoRule = "ALL=(ALL) NOPASSWD:ALL"

// iso is the seed as NoCloud wants it.
func (s *Seed) iso(name, private string) ([]byte, error) {
	user := seedUser{Name: s.user, LockPassword: true, AuthorizedKeys: []string{publicLine(s.key)}}
	if s.user != "root" {
		user.Sudo = sudoRule
	}
	config, err := json.MarshalIndent(userData{
		Users:         []seedUser{user},
		SSHKeys:       map[string]string{"ed25519_private": private, "ed25519_public": s.HostKey()},
		SSHDeleteKeys: true,
		// The other types are nobody's, and RSA takes an emulated guest seconds.
		SSHGenKeyTypes: []string{"ed25519"},
		DisableRoot:    s.user != "root",
		ManageHosts:    "localhost", // or sudo would wait for DNS
	}, "", "  ")
	if err != nil {
		return nil, err
	}
	meta, err := json.Marshal(map[string]string{"instance-id": name, "local-hostname": name})
	if err != nil {
		return nil, err
	}
	writer, err := iso9660.NewWriter()
	if err != nil {
		return nil, err
	}
	defer writer.Cleanup()
	for file, content := range map[string][]byte{
		"user-data": append([]byte("#cloud-config\n"), config...),
		"meta-data": meta,
	} {
		if err := writer.AddFile(bytes.NewReader(content), file); err != nil {
			return nil, err
		}
	}
	var image bytes.Buffer
	if err := writer.WriteTo(&image, seedLabel); err != nil {
		return nil, err
	}
	return image.Bytes(), nil
}

// addSeedDrive adds a CD-ROM drive with the seed: a virtio one where the machine
// has virtio, since kernels for clouds know no SATA; else one on the board's own
// bus.
func addSeedDrive(d *libvirtxml.Domain, path string) {
	drive := libvirtxml.DomainDisk{
		Device:   "cdrom",
		Driver:   &libvirtxml.DomainDiskDriver{Name: "qemu", Type: "raw"},
		Source:   &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: path}},
		ReadOnly: &libvirtxml.DomainDiskReadOnly{},
		Alias:    &libvirtxml.DomainAlias{Name: seedAlias},
	}
	bus := seedBus(d)
	if bus == "scsi" {
		index := nextSCSIController(d)
		d.Devices.Controllers = append(d.Devices.Controllers, libvirtxml.DomainController{Type: "scsi", Index: &index, Model: "virtio-scsi"})
		zero := uint(0)
		drive.Address = &libvirtxml.DomainAddress{Drive: &libvirtxml.DomainAddressDrive{Controller: &index, Bus: &zero, Target: &zero, Unit: &zero}}
	}
	drive.Target = &libvirtxml.DomainDiskTarget{Dev: disk.FreeTarget(d, map[string]string{"ide": "hd"}[bus]), Bus: bus}
	d.Devices.Disks = append(d.Devices.Disks, drive)
}

// seedAlias names the drive in libvirt.
const seedAlias = "ua-sardine-seed"

func seedBus(d *libvirtxml.Domain) string {
	for _, disk := range d.Devices.Disks {
		if disk.Target != nil && (disk.Target.Bus == "virtio" || disk.Target.Bus == "scsi") {
			return "scsi"
		}
	}
	if d.OS != nil && d.OS.Type != nil && !strings.Contains(d.OS.Type.Machine, "q35") && d.OS.Type.Arch == "x86_64" {
		return "ide"
	}
	return "sata"
}

// nextSCSIController is the index of one that the domain does not have, nor gets
// from libvirt for a disk that has no address yet: those take the first.
func nextSCSIController(d *libvirtxml.Domain) uint {
	next := uint(1)
	for _, c := range d.Devices.Controllers {
		if c.Type == "scsi" && c.Index != nil && *c.Index >= next {
			next = *c.Index + 1
		}
	}
	return next
}

// EmptyDrive is the drive of the seed without its medium, as XML, for a domain that
// has one; empty if it has none. doc is the XML of the running domain.
func EmptyDrive(doc string) (device string, err error) {
	d := &libvirtxml.Domain{}
	if err := d.Unmarshal(doc); err != nil {
		return "", err
	}
	if d.Devices == nil {
		return "", nil
	}
	for _, disk := range d.Devices.Disks {
		if disk.Alias == nil || disk.Alias.Name != seedAlias {
			continue
		}
		disk.Source, disk.BackingStore, disk.Driver = nil, nil, nil
		return disk.Marshal()
	}
	return "", nil
}
