package passt

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestResolverOptions(t *testing.T) {
	for _, test := range []struct {
		name, conf, uplinks string
		want                []string
		ok                  bool
	}{
		{"servers of the network", "search example.com\nnameserver 192.0.2.1\n", "", nil, true},
		{"one of the host's and one of the network", "nameserver 127.0.0.1\nnameserver 192.0.2.1\n", "", nil, true},
		{"no servers", "# nothing\n", "", nil, true},
		{"no file", "", "", nil, true},
		{"systemd-resolved", "nameserver 127.0.0.53\noptions edns0\n", "nameserver 192.0.2.1\nnameserver 2001:db8::1\n",
			[]string{"--dns", "192.0.2.1", "--dns", "2001:db8::1"}, true},
		{"more than a resolver asks", "nameserver 127.0.0.53\n", "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n",
			[]string{"--dns", "192.0.2.1", "--dns", "192.0.2.2", "--dns", "192.0.2.3"}, true},
		{"systemd-resolved that knows none", "nameserver 127.0.0.53\n", "# none\n", nil, false},
		{"dnsmasq", "nameserver 127.0.0.1\n", "", nil, false},
		{"dnsmasq on IPv6 first", "nameserver ::1\nnameserver 127.0.0.1\n", "", nil, false},
		{"with a zone", "nameserver fe80::1%eth0\nnameserver 127.0.0.1\n", "", nil, false},
		{"garbage", "nameserver\nnameserver x\n\x00", "", nil, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			paths := make(map[string]string)
			for name, text := range map[string]string{"conf": test.conf, "uplinks": test.uplinks} {
				paths[name] = filepath.Join(dir, name)
				if text == "" {
					continue
				}
				if err := os.WriteFile(paths[name], []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			got, ok := resolverOptions(paths["conf"], paths["uplinks"])
			if !slices.Equal(got, test.want) || ok != test.ok {
				t.Errorf("got %q, %t, want %q, %t", got, ok, test.want, test.ok)
			}
		})
	}
}
