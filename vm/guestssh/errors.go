package guestssh

import "errors"

var (
	// ErrLogin: the guest's SSH server rejects the credentials.
	ErrLogin = errors.New("the guest rejects the credentials")
	// ErrHostKey: the server presented another host key than during prepare.
	ErrHostKey = errors.New("the guest's SSH host key has changed since prepare")
	// ErrLost: the connection to the guest broke while a command was running.
	ErrLost = errors.New("the connection to the guest was lost")
	// ErrSilent: the guest did not answer for a time. It is an ErrLost, too.
	ErrSilent = errors.New("no answer")
	// ErrBooting: the guest refuses logins until it has booted.
	ErrBooting = errors.New("the guest is still booting")
)
