package domainxml_test

import (
	"testing"

	"gitlab-sardine-executor/vm/domainxml"
)

var (
	root = domainxml.DefaultDisk{Disk: domainxml.Disk{Name: "disk.qcow2", Format: "qcow2"}}
	data = domainxml.DefaultDisk{Disk: domainxml.Disk{Name: "data.img", Format: "raw"}}
	seed = domainxml.DefaultDisk{Disk: domainxml.Disk{Name: "seed.iso", Format: "raw"}, CDROM: true}
)

var defaults = []struct {
	name string
	opts domainxml.DefaultOptions
}{
	{"bios", domainxml.DefaultOptions{Disks: []domainxml.DefaultDisk{root}}},
	{"uefi", domainxml.DefaultOptions{Arch: "amd64", UEFI: true, Disks: []domainxml.DefaultDisk{root, data, seed}}},
	{"arm64", domainxml.DefaultOptions{Arch: "arm64", Disks: []domainxml.DefaultDisk{root, seed}}},
}

func TestDefault(t *testing.T) {
	for _, c := range defaults {
		t.Run(c.name, func(t *testing.T) {
			d, err := domainxml.Default(c.opts)
			if err != nil {
				t.Fatal(err)
			}
			result := &domainxml.Result{Domain: d}
			golden(t, "testdata/default/"+c.name+".golden", result)
			again(t, result, domainxml.Options{Disks: layers})
		})
	}
}

func TestDefaultRefuses(t *testing.T) {
	many := make([]domainxml.DefaultDisk, 40)
	for i := range many {
		many[i] = root
	}
	for _, c := range []struct {
		name    string
		opts    domainxml.DefaultOptions
		element string
	}{
		{"an unknown architecture", domainxml.DefaultOptions{Arch: "mips", Disks: []domainxml.DefaultDisk{root}}, "os/type/@arch"},
		{"no disk", domainxml.DefaultOptions{}, "devices/disk"},
		{"more disks than a machine has", domainxml.DefaultOptions{Disks: many}, "devices/disk"},
		{"a path", domainxml.DefaultOptions{Disks: []domainxml.DefaultDisk{{Disk: domainxml.Disk{Name: "/etc/passwd", Format: "raw"}}}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := domainxml.Default(c.opts)
			wantRefused(t, err, c.element)
		})
	}
}
