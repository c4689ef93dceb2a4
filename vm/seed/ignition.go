package seed

import (
	"encoding/base64"
	"encoding/json"
)

// ignitionNames are the names in fw_cfg under which Ignition looks for its config on QEMU: those
// of Fedora CoreOS, RHEL CoreOS and openSUSE MicroOS, and of Flatcar.
var ignitionNames = []string{"opt/com.coreos/config", "opt/org.flatcar-linux/config"}

// ignitionFile is the name of the file with the config, among the files of a machine.
const ignitionFile = "config.ign"

// ignitionConfig is the part of Ignition's config specification 3.0.0 that is used here. Every
// Ignition 2 reads it.
type ignitionConfig struct {
	Ignition struct {
		Version string `json:"version"`
	} `json:"ignition"`
	Passwd struct {
		Users []ignitionUser `json:"users"`
	} `json:"passwd"`
	Storage struct {
		Files []ignitionFileEntry `json:"files"`
	} `json:"storage"`
}

type ignitionUser struct {
	Name           string   `json:"name"`
	AuthorizedKeys []string `json:"sshAuthorizedKeys"`
}

type ignitionFileEntry struct {
	Path      string           `json:"path"`
	Overwrite bool             `json:"overwrite"`
	Mode      int              `json:"mode"`
	Contents  ignitionContents `json:"contents"`
}

type ignitionContents struct {
	Source string `json:"source"`
}

// ignition returns the seed as a config of Ignition, with the host key. The user is in no group:
// the group of administrators has different names, and Ignition fails if a group is missing.
func (s *Seed) ignition(name string, private []byte) ([]byte, error) {
	var c ignitionConfig
	c.Ignition.Version = "3.0.0"
	c.Passwd.Users = []ignitionUser{{s.user, []string{publicLine(s.key)}}}
	add := func(path string, mode int, content string) {
		source := "data:;base64," + base64.StdEncoding.EncodeToString([]byte(content))
		c.Storage.Files = append(c.Storage.Files, ignitionFileEntry{path, true, mode, ignitionContents{source}})
	}
	add("/etc/hostname", 0o644, name+"\n")
	add("/etc/ssh/ssh_host_ed25519_key", 0o600, string(private))
	if s.user != "root" {
		add(sudoersFile, 0o440, s.user+" "+sudoRule+"\n")
	}
	return json.Marshal(c)
}
