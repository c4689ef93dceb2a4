package credentials

import (
	"errors"
	"testing"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/seed"
)

func TestFor(t *testing.T) {
	silent := oci.GuestConfig{}
	named := oci.GuestConfig{Users: []oci.User{{Username: "debian"}}}
	complete := oci.GuestConfig{Users: []oci.User{{Username: "vagrant", Password: "vagrant"}}}
	hostile := oci.GuestConfig{Users: []oci.User{{Username: "x ALL=(ALL)\n"}}}
	for _, test := range []struct {
		name     string
		defaults string
		guest    oci.GuestConfig
		user     string
		seed     bool
		want     error
	}{
		{"complete image", "", complete, "vagrant", false, nil},
		{"no credentials", "", silent, seed.DefaultUser, true, nil},
		{"the image names a user", "", named, "debian", true, nil},
		{"the settings name a user", "username = 'cloud'", silent, "cloud", true, nil},
		{"complete settings", "username = 'cloud'\nidentity_file = '/key'", silent, "cloud", false, nil},
		{"image and settings together", "ssh_agent = true", named, "debian", false, nil},
		{"a key without a user", "identity_file = '/key'", silent, "", false, errNoUser},
		{"invalid name", "", hostile, "", false, errdefs.ErrInvalid},
	} {
		t.Run(test.name, func(t *testing.T) {
			settings, err := config.Parse([]byte("[defaults]\n" + test.defaults + "\n"))
			if err != nil {
				t.Fatal(err)
			}
			login, seed, err := For(settings.For("registry.example.com/a:1"), test.guest)
			if !errors.Is(err, test.want) {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			if err == nil && (login.User != test.user || (seed != nil) != test.seed || login.Late != test.seed) {
				t.Errorf("got user %q, a seed: %t, late: %t; want %q, %t", login.User, seed != nil, login.Late, test.user, test.seed)
			}
		})
	}
}
