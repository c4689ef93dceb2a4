// Package sdnotify tells systemd the state of a service: see sd_notify(3). Without systemd
// it does nothing.
package sdnotify

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Ready says that the service has started, or has read its settings again.
func Ready(status string) error { return send("READY=1\nSTATUS=" + oneLine(status)) }

// Reloading says that the service reads its settings again. [Ready] ends it.
func Reloading() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return os.NewSyscallError("clock_gettime", err)
	}
	return send(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/int64(time.Microsecond)))
}

// Stopping says that the service ends.
func Stopping() error { return send("STOPPING=1") }

// Watchdog says that the service works.
func Watchdog() error { return send("WATCHDOG=1") }

// WatchdogInterval is how often systemd wants to hear [Watchdog]; 0 for never. It is half of
// WatchdogSec=, as sd_watchdog_enabled(3) recommends.
func WatchdogInterval() time.Duration {
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0
	}
	usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || usec <= 0 {
		return 0
	}
	return time.Duration(usec) * time.Microsecond / 2
}

// send sends assignments, one on a line, to the socket that systemd names. A name that begins
// with @ is an abstract one, which package net understands.
func send(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	return nil
}

func oneLine(text string) string { return strings.ReplaceAll(text, "\n", " ") }
