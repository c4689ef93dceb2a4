package oci

import (
	"errors"
	"testing"
)

func FuzzGuestConfig(f *testing.F) {
	f.Add([]byte(`{"users":[{"username":"vagrant","password":"vagrant","port":22}],"services":[{"service":"ssh","port":22,"protocol":"tcp"}],"more":1}`))
	f.Add([]byte(`{"users":[{"username":"a","port":-1}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		guest, err := ParseGuestConfig(raw)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Error(err)
			}
			return
		}
		if port := guest.SSHPort(); port < 1 || port > 65535 {
			t.Errorf("port %d", port)
		}
		for _, user := range guest.Users {
			if user.Username == "" {
				t.Error("a user without a name")
			}
		}
	})
}
