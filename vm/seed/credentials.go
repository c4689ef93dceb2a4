package seed

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"

	"libvirt.org/go/libvirtxml"
)

// hostKeyCredential is the name of the system credential with the guest's private host key.
// QEMU limits names in fw_cfg to 55 bytes, with the prefix.
const hostKeyCredential = "sardine.ssh_host_key"

// hostKeyFile is the name of the file with that key, among the files of a machine.
const hostKeyFile = "hostkey"

// FirmwareFiles are the names of the files, among those of a machine, that its fw_cfg device
// shows to the guest.
var FirmwareFiles = []string{hostKeyFile, ignitionFile}

// addCredentials passes the seed to systemd (252 or later) as system credentials
// (systemd.system-credentials(7)): what is public as SMBIOS OEM strings, which are on the
// command line of QEMU; the host key through fw_cfg, from a file. It passes it to Ignition
// through fw_cfg. Machines of other architectures have neither.
func (s *Seed) addCredentials(d *libvirtxml.Domain, private []byte, dir string) error {
	if d.OS == nil || d.OS.Type == nil || d.OS.Type.Arch != "x86_64" && d.OS.Type.Arch != "aarch64" {
		return nil
	}
	config, err := s.ignition(cmp.Or(s.hostname, d.Name), private)
	if err != nil {
		return fmt.Errorf("create the config for Ignition: %w", err)
	}
	for file, content := range map[string][]byte{hostKeyFile: private, ignitionFile: config} {
		if err := os.WriteFile(filepath.Join(dir, file), content, 0o600); err != nil {
			return fmt.Errorf("write the seed for the firmware: %w", err)
		}
	}
	entries := []libvirtxml.DomainSysInfoEntry{{Name: "opt/io.systemd.credentials/" + hostKeyCredential, File: filepath.Join(dir, hostKeyFile)}}
	for _, name := range ignitionNames {
		entries = append(entries, libvirtxml.DomainSysInfoEntry{Name: name, File: filepath.Join(dir, ignitionFile)})
	}
	d.OS.SMBios = &libvirtxml.DomainSMBios{Mode: "sysinfo"}
	d.SysInfo = append(d.SysInfo,
		libvirtxml.DomainSysInfo{SMBIOS: &libvirtxml.DomainSysInfoSMBIOS{
			OEMStrings: &libvirtxml.DomainSysInfoOEMStrings{Entry: s.oemStrings()},
		}},
		libvirtxml.DomainSysInfo{FWCfg: &libvirtxml.DomainSysInfoFWCfg{Entry: entries}},
	)
	return nil
}

// oemStrings returns the credentials for systemd-sysusers and systemd-tmpfiles, which run
// before logins are possible. 1000 is the ID of the first user of a system; systemd chooses
// another one if it is taken.
func (s *Seed) oemStrings() []string {
	credential := func(name, value string) string {
		return "io.systemd.credential.binary:" + name + "=" + base64.StdEncoding.EncodeToString([]byte(value))
	}
	if s.user == "root" {
		return []string{
			credential("ssh.authorized_keys.root", publicLine(s.key)+"\n"),
			credential("tmpfiles.extra", hostKeyLink),
		}
	}
	return []string{
		credential("sysusers.extra", fmt.Sprintf("u %s 1000 \"GitLab job\" /home/%s /bin/sh\n", s.user, s.user)),
		credential("tmpfiles.extra", hostKeyLink+s.tmpfiles()),
	}
}

// hostKeyLink makes sshd read its key from the credential, a file that only root can read.
// cloud-init replaces the link by the same key.
const hostKeyLink = "L+ /etc/ssh/ssh_host_ed25519_key - - - - /run/credentials/@system/" + hostKeyCredential + "\n"

// tmpfiles returns lines of tmpfiles.d(5) that allow the user to log in and to use sudo.
func (s *Seed) tmpfiles() string {
	encode := func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
	return fmt.Sprintf(`d /home/%[1]s 0755 %[1]s %[1]s
d /home/%[1]s/.ssh 0700 %[1]s %[1]s
f+~ /home/%[1]s/.ssh/authorized_keys 0600 %[1]s %[1]s - %[2]s
f+~ %[4]s 0440 root root - %[3]s
`, s.user, encode(publicLine(s.key)+"\n"), encode(s.user+" "+sudoRule+"\n"), sudoersFile)
}
