package guestssh

import "errors"

var (
	// ErrLogin: the guest's SSH server rejects the credentials.
	ErrLogin = errors.New("the guest rejects the credentials")
	// ErrHostKey: the SSH server is not the one that prepare saw.
	ErrHostKey = errors.New("the guest's SSH host key is not the one that was seen at prepare")
	// ErrLost: the connection to the guest broke while a command ran there.
	ErrLost = errors.New("the connection to the guest was lost")
	// ErrBooting: the guest refuses all logins until it has booted.
	ErrBooting = errors.New("the guest is still booting")
)
