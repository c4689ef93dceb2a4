// Package seed makes what cloud-init, systemd and Ignition set up a guest by, and its SSH keys.
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

// DefaultUser is the user that a guest gets if neither the settings nor the image name one.
// No distribution has a user of that name.
const DefaultUser = "ci"

// seedLabel is the label of the file system that cloud-init's data source NoCloud expects.
const seedLabel = "CIDATA"

// A Seed gives a guest without a known login a user with a key of this job, and a host key,
// while it boots. With the host key known in advance, the first connection is verified,
// too.
//
// The guest gets it three times, and uses what it knows: for cloud-init on a CD-ROM, which is
// ejected when the guest is ready, for systemd as credentials, and for Ignition as its config.
// All three say the same. The host key is the only secret that the guest gets.
type Seed struct {
	user    string
	key     ed25519.PrivateKey
	hostKey ed25519.PrivateKey
	// hostname of the guest; empty means the name of the domain.
	hostname string
}

// userName matches names that useradd(8) accepts on all distributions. The name is written
// to files of several formats.
var userName = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)

// New creates a seed with new keys. An empty user means [DefaultUser].
func New(user string) (*Seed, error) {
	if user == "" {
		user = DefaultUser
	}
	if !userName.MatchString(user) {
		return nil, fmt.Errorf("%w: %.40q cannot be the name of the user that a guest without a password gets (want %s)", errdefs.ErrInvalid, user, userName)
	}
	s := &Seed{user: user}
	for _, key := range []*ed25519.PrivateKey{&s.key, &s.hostKey} {
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("create the keys of the job: %w", err)
		}
		*key = private
	}
	return s, nil
}

// WithHostname returns the same seed for a guest with that host name.
func (s *Seed) WithHostname(name string) *Seed {
	named := *s
	named.hostname = name
	return &named
}

// User returns the name of the user that the guest gets.
func (s *Seed) User() string { return s.user }

// Login returns the login of the guest.
func (s *Seed) Login() guestssh.Login { return guestssh.Login{User: s.user, Key: s.key, Late: true} }

// HostKey returns the public host key as in known_hosts, without the host.
func (s *Seed) HostKey() string { return publicLine(s.hostKey) }

func publicLine(key ed25519.PrivateKey) string {
	public, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		panic(err) // it is an ed25519 key
	}
	return guestssh.FormatKey(public)
}

// privatePEM returns the host key in the format of sshd.
func (s *Seed) privatePEM() ([]byte, error) {
	block, err := ssh.MarshalPrivateKey(s.hostKey, "")
	if err != nil {
		return nil, fmt.Errorf("encode the host key of the job: %w", err)
	}
	return pem.EncodeToMemory(block), nil
}

// Attach adds the seed to a domain. It creates files in dir, which QEMU opens at start.
func (s *Seed) Attach(d *libvirtxml.Domain, dir string) error {
	private, err := s.privatePEM()
	if err != nil {
		return err
	}
	iso, err := s.iso(cmp.Or(s.hostname, d.Name), string(private))
	if err != nil {
		return fmt.Errorf("create the seed for cloud-init: %w", err)
	}
	path := filepath.Join(dir, "seed.iso")
	if err := os.WriteFile(path, iso, 0o600); err != nil {
		return fmt.Errorf("create the seed for cloud-init: %w", err)
	}
	addSeedDrive(d, path)
	return s.addCredentials(d, private, dir)
}

// userData is the part of cloud-config that is used here. JSON is valid YAML.
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

// sudoRule allows the job to become root in its own machine, as in cloud images.
const sudoRule = "ALL=(ALL) NOPASSWD:ALL"

// sudoersFile is the file with this rule, if cloud-init does not write it.
const sudoersFile = "/etc/sudoers.d/90-gitlab-sardine-executor"

// iso returns the seed in the format of NoCloud.
func (s *Seed) iso(name, private string) ([]byte, error) {
	user := seedUser{Name: s.user, LockPassword: true, AuthorizedKeys: []string{publicLine(s.key)}}
	if s.user != "root" {
		user.Sudo = sudoRule
	}
	config, err := json.MarshalIndent(userData{
		Users:         []seedUser{user},
		SSHKeys:       map[string]string{"ed25519_private": private, "ed25519_public": s.HostKey()},
		SSHDeleteKeys: true,
		// Other types are not used, and an RSA key takes seconds in an emulated guest.
		SSHGenKeyTypes: []string{"ed25519"},
		DisableRoot:    s.user != "root",
		ManageHosts:    "localhost", // otherwise sudo waits for DNS
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

// addSeedDrive adds a CD-ROM drive with the seed: on virtio-scsi if the machine has virtio,
// since cloud kernels lack SATA, and otherwise on the bus of the board.
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

// seedAlias is the alias of the drive in libvirt.
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

// nextSCSIController returns the index for a new controller. It is not 0: libvirt adds that
// controller for disks without an address.
func nextSCSIController(d *libvirtxml.Domain) uint {
	next := uint(1)
	for _, c := range d.Devices.Controllers {
		if c.Type == "scsi" && c.Index != nil && *c.Index >= next {
			next = *c.Index + 1
		}
	}
	return next
}

// EmptyDrive returns the XML of the seed's drive without its medium; empty if the domain has
// no such drive. doc is the XML of the running domain.
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
