package seed

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kdomanski/iso9660"
	"golang.org/x/crypto/ssh"
	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/errdefs"
)

func TestSeedUser(t *testing.T) {
	for user, want := range map[string]error{
		"": nil, "ci": nil, "root": nil, "_apt": nil, "cloud-user": nil,
		"a b": errdefs.ErrInvalid, "ci\nu root": errdefs.ErrInvalid, "CI": errdefs.ErrInvalid, "-x": errdefs.ErrInvalid, "%wheel": errdefs.ErrInvalid,
		"ci ALL=(ALL)": errdefs.ErrInvalid, "../x": errdefs.ErrInvalid, strings.Repeat("a", 33): errdefs.ErrInvalid,
	} {
		if _, err := New(user); !errors.Is(err, want) {
			t.Errorf("user %q: got %v, want %v", user, err, want)
		}
	}
}

// domainWith is a domain with one disk.
func domainWith(machine, bus string) *libvirtxml.Domain {
	return &libvirtxml.Domain{
		Name: "sardine-00000000-1",
		OS:   &libvirtxml.DomainOS{Type: &libvirtxml.DomainOSType{Arch: "x86_64", Machine: machine}},
		Devices: &libvirtxml.DomainDeviceList{Disks: []libvirtxml.DomainDisk{{
			Target: &libvirtxml.DomainDiskTarget{Dev: "sda", Bus: bus},
		}}},
	}
}

// cloud-init and systemd get the public half of the login key, and the host key that is
// required later.
func TestSeedHasBothKeys(t *testing.T) {
	seed, err := New("")
	if err != nil {
		t.Fatal(err)
	}
	d, dir := domainWith("pc-q35-7.2", "virtio"), t.TempDir()
	if err := seed.Attach(d, dir); err != nil {
		t.Fatal(err)
	}
	login := publicLine(seed.Login().Key)
	files := readISO(t, filepath.Join(dir, "seed.iso"))
	config, ok := strings.CutPrefix(files["user-data"], "#cloud-config\n")
	if !ok || files["meta-data"] == "" {
		t.Fatalf("the seed holds %q", files)
	}
	var told userData
	if err := json.Unmarshal([]byte(config), &told); err != nil {
		t.Fatal(err)
	}
	if len(told.Users) != 1 || told.Users[0].Name != DefaultUser || told.Users[0].AuthorizedKeys[0] != login {
		t.Errorf("cloud-init is told of users %+v", told.Users)
	}
	signer, err := ssh.ParsePrivateKey([]byte(told.SSHKeys["ed25519_private"]))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))); got != seed.HostKey() {
		t.Errorf("cloud-init is given host key %s, we want %s", got, seed.HostKey())
	}
	fromFile, err := os.ReadFile(filepath.Join(dir, "hostkey"))
	if err != nil || string(fromFile) != told.SSHKeys["ed25519_private"] {
		t.Errorf("systemd is given another host key than cloud-init (%v)", err)
	}
	for _, name := range []string{"seed.iso", "hostkey"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

// Ignition gets the same keys under both names that its distributions look for.
func TestIgnition(t *testing.T) {
	for _, user := range []string{"ci", "root"} {
		seed, err := New(user)
		if err != nil {
			t.Fatal(err)
		}
		d, dir := domainWith("pc-q35-7.2", "virtio"), t.TempDir()
		if err := seed.Attach(d, dir); err != nil {
			t.Fatal(err)
		}
		files := make(map[string]string)
		for _, entry := range d.SysInfo[1].FWCfg.Entry {
			files[entry.Name] = entry.File
		}
		path := filepath.Join(dir, ignitionFile)
		if files["opt/com.coreos/config"] != path || files["opt/org.flatcar-linux/config"] != path || len(files) != 3 {
			t.Errorf("fw_cfg has %q", files)
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var c ignitionConfig
		if err := json.Unmarshal(raw, &c); err != nil {
			t.Fatal(err)
		}
		content := make(map[string]string)
		for _, file := range c.Storage.Files {
			plain, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(file.Contents.Source, "data:;base64,"))
			if err != nil || !file.Overwrite {
				t.Errorf("%+v: %v", file, err)
			}
			content[file.Path] = string(plain)
		}
		private, err := os.ReadFile(filepath.Join(dir, hostKeyFile))
		if err != nil {
			t.Fatal(err)
		}
		if content["/etc/ssh/ssh_host_ed25519_key"] != string(private) || content["/etc/hostname"] != d.Name+"\n" {
			t.Errorf("files: %q", content)
		}
		if want := map[string]string{"ci": "ci " + sudoRule + "\n"}[user]; content[sudoersFile] != want {
			t.Errorf("sudo: %q, want %q", content[sudoersFile], want)
		}
		if len(c.Passwd.Users) != 1 || c.Passwd.Users[0].Name != user || c.Passwd.Users[0].AuthorizedKeys[0] != publicLine(seed.key) {
			t.Errorf("users: %+v", c.Passwd.Users)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("others can read the host key: %v, %v", info.Mode(), err)
		}
	}
}

// The command line of QEMU contains the OEM strings. All users of the host can read it, and
// libvirt logs it.
func TestNoSecretOnTheCommandLine(t *testing.T) {
	for _, user := range []string{"ci", "root"} {
		seed, err := New(user)
		if err != nil {
			t.Fatal(err)
		}
		d := domainWith("pc-q35-7.2", "virtio")
		if err := seed.Attach(d, t.TempDir()); err != nil {
			t.Fatal(err)
		}
		doc, err := d.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		text := doc
		for _, entry := range d.SysInfo[0].SMBIOS.OEMStrings.Entry {
			_, value, _ := strings.Cut(entry, "=")
			plain, err := base64.StdEncoding.DecodeString(value)
			if err != nil {
				t.Fatal(err)
			}
			text += string(plain)
			for line := range strings.Lines(string(plain)) {
				if field := strings.Fields(line); strings.HasPrefix(field[0], "f+~") {
					inner, err := base64.StdEncoding.DecodeString(field[len(field)-1])
					if err != nil {
						t.Fatal(err)
					}
					text += string(inner)
				}
			}
		}
		if !strings.Contains(text, publicLine(seed.key)) {
			t.Errorf("user %s: the public key is missing", user)
		}
		for _, secret := range []string{"PRIVATE KEY", string(seed.key.Seed()), string(seed.hostKey.Seed())} {
			if strings.Contains(text, secret) {
				t.Errorf("user %s: the domain holds a secret", user)
			}
		}
	}
}

func TestSeedDrive(t *testing.T) {
	for _, test := range []struct{ machine, bus, want string }{
		{"pc-q35-7.2", "virtio", "scsi sdz"},
		{"pc-q35-7.2", "scsi", "scsi sdz"},
		{"pc-q35-7.2", "sata", "sata sdz"},
		{"pc-i440fx-7.2", "virtio", "scsi sdz"},
		{"pc-i440fx-7.2", "ide", "ide hdd"},
	} {
		d := domainWith(test.machine, test.bus)
		index := uint(0)
		d.Devices.Controllers = []libvirtxml.DomainController{{Type: "scsi", Index: &index}}
		addSeedDrive(d, "/seed.iso")
		drive := d.Devices.Disks[1]
		if got := drive.Target.Bus + " " + drive.Target.Dev; got != test.want {
			t.Errorf("%s with a disk on %s: got %s, want %s", test.machine, test.bus, got, test.want)
		}
		if test.want == "scsi sdz" && *drive.Address.Drive.Controller != 1 {
			t.Errorf("the drive is on controller %d, which is another's", *drive.Address.Drive.Controller)
		}
	}
}

func readISO(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	label := make([]byte, 32)
	if _, err := f.ReadAt(label, 0x8028); err != nil || !bytes.HasPrefix(label, []byte("CIDATA ")) {
		t.Errorf("the label is %q (%v)", label, err)
	}
	image, err := iso9660.OpenImage(f)
	if err != nil {
		t.Fatal(err)
	}
	root, err := image.RootDir()
	if err != nil {
		t.Fatal(err)
	}
	children, err := root.GetChildren()
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]string)
	for _, child := range children {
		content, err := io.ReadAll(child.Reader())
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimSuffix(child.Name(), ";1")] = string(content)
	}
	return files
}
