// Package errdefs defines the errors that several packages below vm return and
// that callers act on.
package errdefs

import (
	"errors"
	"fmt"
)

var (
	// ErrInvalid: the machine cannot be created as requested: an unknown network, a
	// missing program, a value out of range. Retrying does not help.
	ErrInvalid = errors.New("the machine cannot be made")
	// ErrExists: there is a domain of that name already.
	ErrExists = errors.New("domain exists already")
	// ErrNoDomain: libvirt has no domain of that name.
	ErrNoDomain = errors.New("no such domain")
	// ErrNotOurs: the domain has no record of a job. This program does not change such a
	// domain.
	ErrNotOurs = errors.New("not a machine of a job")
)

// Errors of the connection to libvirt.
var (
	// ErrDisconnected: the daemon closed the connection, as it does when it restarts. Its
	// machines continue to run, and a new connection may succeed.
	ErrDisconnected = errors.New("the connection to libvirt broke (was its daemon restarted?)")
	// ErrUnreachable: the connection to the libvirt daemon failed: the daemon does not run, is
	// restarting, or refuses this user.
	ErrUnreachable = errors.New("libvirt cannot be reached")
)

// Errors of the guest.
var (
	// ErrGuestStopped: the guest stopped, crashed or paused by itself.
	ErrGuestStopped = errors.New("the guest stopped")
	// ErrPoweredOff: the guest shut its machine down. It is an ErrGuestStopped, too.
	ErrPoweredOff = fmt.Errorf("%w: it powered off", ErrGuestStopped)
	// ErrRebooted: the guest rebooted while a command was running in it.
	ErrRebooted = errors.New("the guest rebooted")
	// ErrBeforeLogin: the guest ended before a stage that follows prepare had logged in.
	ErrBeforeLogin = errors.New("before the login")
	// ErrNoAnswer: the guest is running, but its SSH server did not answer in time.
	ErrNoAnswer = errors.New("the guest does not answer")
	// ErrNetworkEnded: the process that is the guest's user network has ended, and QEMU does
	// not connect to another one.
	ErrNetworkEnded = errors.New("passt, the guest's network, has ended (did it crash, or did the kernel kill it for lack of memory? see dmesg)")
	// ErrNoBoot: the firmware of the machine found nothing to boot on its disks.
	ErrNoBoot = errors.New("the guest has not booted")
)
