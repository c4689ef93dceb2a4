package seed

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"

	"libvirt.org/go/libvirtxml"
)

// hostKeyCredential is the name of the system credential that holds the guest's
// private host key. QEMU allows names of fw_cfg 55 bytes, with the prefix.
const hostKeyCredential = "sardine.ssh_host_key"

// HostKeyFile is the file with it, among a machine's files.
const HostKeyFile = "hostkey"

// addCredentials hands the seed to systemd (252 or later) as system credentials
// (systemd.system-credentials(7)): what anybody may know as SMBIOS OEM strings,
// which stand on QEMU's command line; the host key by QEMU's fw_cfg, from a file.
// Machines of other architectures have neither.
func (s *Seed) addCredentials(d *libvirtxml.Domain, private []byte, dir string) error {
	if d.OS == nil || d.OS.Type == nil || d.OS.Type.Arch != "x86_64" && d.OS.Type.Arch != "aarch64" {
		return nil
	}
	key := filepath.Join(dir, HostKeyFile)
	if err := os.WriteFile(key, private, 0o600); err != nil {
		return fmt.Errorf("make the host key for systemd: %w", err)
	}
	d.OS.SMBios = &libvirtxml.DomainSMBios{Mode: "sysinfo"}
	d.SysInfo = append(d.SysInfo,
		libvirtxml.DomainSysInfo{SMBIOS: &libvirtxml.DomainSysInfoSMBIOS{
			OEMStrings: &libvirtxml.DomainSysInfoOEMStrings{Entry: s.oemStrings()},
		}},
		libvirtxml.DomainSysInfo{FWCfg: &libvirtxml.DomainSysInfoFWCfg{
			Entry: []libvirtxml.DomainSysInfoEntry{{Name: "opt/io.systemd.credentials/" + hostKeyCredential, File: key}},
		}},
	)
	return nil
}

// oemStrings are the credentials of systemd-sysusers and systemd-tmpfiles, which
// do their work before anybody can log in. 1000 is what the first user of a system
// gets, and what systemd takes unless it is another's.
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

// hostKeyLink has sshd read its key where systemd put the credential: a file there
// only root can read. cloud-init replaces the link by the same key.
const hostKeyLink = "L+ /etc/ssh/ssh_host_ed25519_key - - - - /run/credentials/@system/" + hostKeyCredential + "\n"

// tmpfiles are lines of tmpfiles.d(5) that let the user in, and become root.
func (s *Seed) tmpfiles() string {
	encode := func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
	return fmt.Sprintf(`d /home/%[1]s 0755 %[1]s %[1]s
d /home/%[1]s/.ssh 0700 %[1]s %[1]s
f+~ /home/%[1]s/.ssh/authorized_keys 0600 %[1]s %[1]s - %[2]s
f+~ /etc/sudoers.d/90-gitlab-sardine-executor 0440 root root - %[3]s
`, s.user, encode(publicLine(s.key)+"\n"), encode(s.user+" "+sudoRule+"\n"))
}
