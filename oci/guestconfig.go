package oci

import (
	"encoding/json"
	"fmt"
)

// ParseGuestConfig reads a VM config. It ignores unknown keys. The error is [ErrFormat].
func ParseGuestConfig(raw []byte) (GuestConfig, error) {
	var g GuestConfig
	if err := json.Unmarshal(raw, &g); err != nil {
		return GuestConfig{}, fmt.Errorf("%w: VM config: %w", ErrFormat, err)
	}
	for i, user := range g.Users {
		if user.Username == "" {
			return GuestConfig{}, fmt.Errorf("%w: VM config: users[%d] has no username", ErrFormat, i)
		}
		if !isPort(user.Port) {
			return GuestConfig{}, fmt.Errorf("%w: VM config: users[%d]: port %d", ErrFormat, i, user.Port)
		}
	}
	for i, service := range g.Services {
		if !isPort(service.Port) {
			return GuestConfig{}, fmt.Errorf("%w: VM config: services[%d]: port %d", ErrFormat, i, service.Port)
		}
	}
	return g, nil
}

// isPort reports whether p is a port number, or 0 for the default.
func isPort(p int) bool { return p >= 0 && p <= 65535 }
