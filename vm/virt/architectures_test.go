package virt

import (
	"fmt"
	"testing"
)

func TestArchitectures(t *testing.T) {
	guest := func(kind, arch string) string {
		return fmt.Sprintf(`<guest><os_type>%s</os_type><arch name='%s'><domain type='qemu'/></arch></guest>`, kind, arch)
	}
	have, err := architectures("<capabilities><host/>" + guest("hvm", "i686") + guest("hvm", "x86_64") + guest("xen", "aarch64") + guest("hvm", "x86_64") + "</capabilities>")
	if err != nil || fmt.Sprint(have) != "[i686 x86_64]" {
		t.Errorf("got %v, %v", have, err)
	}
	if have, err := architectures("<capabilities>"); err == nil {
		t.Errorf("broken XML: %v", have)
	}
}
