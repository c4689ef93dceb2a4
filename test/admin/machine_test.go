//go:build boot

package admin

import (
	"context"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/internal/testbed"
)

// TestMachineSource uses virtual machines of libvirt as images, as long as they are shut off.
func TestMachineSource(t *testing.T) {
	testbed.MostlyIn(t, "system", nightly, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode)
		const name = "ci base [1]: ü*"
		s.run(t, "import", "--quiet", "--name", name, "oci:"+s.layoutOf(t, "chain")+":latest")
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
			defer cancel()
			mode.Command(ctx, "virsh", "-c", mode.Connect, "destroy", name).Run()
			mode.Command(ctx, "virsh", "-c", mode.Connect, "undefine", name).Run()
		})
		ref := "libvirt:" + name
		first := s.run(t, "pull", "--quiet", ref)
		if again := s.run(t, "pull", "--quiet", ref); again != first {
			t.Errorf("%s is %s, and then %s", ref, first, again)
		}
		if said := s.run(t, "inspect", ref); !strings.Contains(said, first) || !strings.Contains(said, "no pattern in allowed_images that starts with libvirt: allows it") {
			t.Errorf("inspect: %s", said)
		}
		overlay := filepath.Join(s.Storage, "vms", name, "overlay.qcow2")
		mode.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 1M 64k", overlay)
		second := s.run(t, "pull", "--quiet", ref)
		if second == first {
			t.Error("the disk changed, and the image did not")
		}
		disks, err := filepath.Glob(filepath.Join(s.Storage, "images", "sha256*"+strings.TrimPrefix(second, "sha256:")+"*", "overlay.qcow2"))
		if err != nil || len(disks) != 1 {
			t.Fatalf("%v, %v", disks, err)
		}
		mode.Run(t, "qemu-io", "-r", "-f", "qcow2", "-c", "read -P 0x5a 1M 64k", disks[0])
		mode.Virsh(t, "start", name)
		for image, want := range map[string]string{
			ref:            "shut it down first (virsh -c " + mode.Connect + " shutdown '" + name + "')",
			"libvirt:none": "libvirt has no virtual machine of this name",
			"libvirt:a\nb": "want libvirt:NAME",
		} {
			if said := s.fails(t, "pull", "--quiet", image); !strings.Contains(said, want) || strings.Count(strings.TrimSpace(said), "\n") > 0 {
				t.Errorf("pull %q: %s, want one line with %q", image, said, want)
			}
		}
		mode.Virsh(t, "destroy", name)
		// It was running, and nothing was written.
		if third := s.run(t, "pull", "--quiet", ref); third != second {
			t.Errorf("after a run without a write: %s, want %s", third, second)
		}
	})
}

// TestTryMachine runs a job in a clone of a virtual machine of libvirt. The job's own machine is
// no image.
func TestTryMachine(t *testing.T) {
	s := newSite(t, testbed.Session(t))
	s.run(t, "import", "--quiet", "--name", "prepared", s.base(t))
	t.Cleanup(func() { s.Mode.Virsh(t, "undefine", "prepared") })
	s.Configure(t, "[[image]]", "match = 'libvirt:*'", "username = 'vagrant'", "password = 'vagrant'")
	before := testbed.TakeInventory(t, s.Mode, s.Storage)
	cmd := s.Mode.Command(t.Context(), s.Driver, "--config", s.Config, "try", "libvirt:prepared", "--", "sh", "-c", "read line; echo got $line")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	machine := ""
	for deadline := time.Now().Add(2 * time.Minute); machine == "" && time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		machine = regexp.MustCompile(`sardine-\S+`).FindString(s.Mode.Virsh(t, "list", "--name"))
	}
	if refused := s.fails(t, "pull", "--quiet", "libvirt:"+machine); !strings.Contains(refused, "it is the machine of a job") {
		t.Errorf("pull libvirt:%s: %s", machine, refused)
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil || !strings.Contains(said.String(), "got") {
		t.Errorf("%v: %s", err, said.String())
	}
	before.CheckNothingLeft(t)
}
