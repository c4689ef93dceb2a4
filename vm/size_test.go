package vm

import (
	"strings"
	"testing"

	"gitlab-sardine-executor/vm/admission"
	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/domain"
	"gitlab-sardine-executor/vm/virt/virttest"
)

// An image made for a larger host gets a machine for which this one has room. The host of
// test:///default has 3 GiB and 16 CPUs.
func TestMachineFitsTheHost(t *testing.T) {
	h := virttest.OpenEmpty(t)
	for name, test := range map[string]struct {
		size     domain.Size
		reserve  int64
		memory   uint64 // MiB
		warnings int
	}{
		"the host's":                        {domain.Size{}, -1, 3072, 2},
		"less what it keeps for itself":     {domain.Size{}, 1 << 30, 2048, 2},
		"nothing is left":                   {domain.Size{}, 3 << 30, 3072, 2},
		"the limit of the settings":         {domain.Size{MaxMemory: 1 << 30, MaxCPUs: 2}, 1 << 30, 1024, 2},
		"the limit of the settings, higher": {domain.Size{MaxMemory: 4 << 30, MaxCPUs: 64}, 1 << 30, 4096, 0},
		"a size that fits":                  {domain.Size{Memory: 1 << 29, CPUs: 1}, 1 << 30, 512, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := starter{host: h, spec: Spec{
				Name: someMachine, Size: test.size, Admission: admission.Policy{Reserve: test.reserve},
				Source: domain.Source{
					Disks:     []disk.Disk{{Name: "a.qcow2", Path: "/i/a.qcow2", Format: "qcow2"}},
					DomainXML: []byte(`<domain type="qemu"><name>x</name><memory unit="GiB">4</memory><vcpu>32</vcpu><os><type arch="i686">hvm</type></os><devices><disk type="file"><source file="a.qcow2"/><target dev="vda"/></disk></devices></domain>`),
				},
			}}
			built, err := s.buildDomain(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if memory := domain.Memory(built) >> 20; memory != test.memory {
				t.Errorf("it has %d MiB", memory)
			}
			if len(s.warnings) != test.warnings {
				t.Errorf("warnings: %q", strings.Join(s.warnings, "\n"))
			}
		})
	}
}
