package seed

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"

	"libvirt.org/go/libvirtxml"
)

// hostKeyCredential is the name of the system credential with the guest's private host key.
// QEMU limits names in fw_cfg to 55 bytes, with the prefix.
const hostKeyCredential = "sardine.ssh_host_key"

// HostKeyFile is the name of the file with that key, among the files of a machine.
const HostKeyFile = "hostkey"

// addCredentials passes the seed to systemd (252 or later) as system credentials
// (systemd.system-credentials(7)): what is public as SMBIOS OEM strings, which are on the
// command line of QEMU; the host key through fw_cfg, from a file. Machines of other
// architectures have neither.
func (s *Seed) addCredentials(d *libvirtxml.Domain, private []byte, dir string) error {
	if d.OS == nil || d.OS.Type == nil || d.OS.Type.Arch != "x86_64" && d.OS.Type.Arch != "aarch64" {
		return nil
	}
	key := filepath.Join(dir, HostKeyFile)
	if err := os.WriteFile(key, private, 0o600); err != nil {
		return fmt.Errorf("write the host key for systemd: %w", err)
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
f+~ /etc/sudoers.d/90-gitlab-sardine-executor 0440 root root - %[3]s
`, s.user, encode(publicLine(s.key)+"\n"), encode(s.user+" "+sudoRule+"\n"))
}
