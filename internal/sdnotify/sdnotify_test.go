package sdnotify

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestStatesReachSystemd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	server, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	for _, state := range []struct {
		send func() error
		want string
	}{
		{func() error { return Ready("two\nlines") }, "READY=1\nSTATUS=two lines"},
		{Reloading, "RELOADING=1\nMONOTONIC_USEC="},
		{Stopping, "STOPPING=1"},
		{Watchdog, "WATCHDOG=1"},
	} {
		if err := state.send(); err != nil {
			t.Fatal(err)
		}
		text := make([]byte, 200)
		if err := server.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := server.Read(text)
		if err != nil || !strings.HasPrefix(string(text[:n]), state.want) {
			t.Errorf("got %q, %v; want %q", text[:n], err, state.want)
		}
	}
}

func TestWithoutSystemd(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Ready("ready"); err != nil {
		t.Error(err)
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "none"))
	if err := Ready("ready"); err == nil {
		t.Error("no error without a listener")
	}
}

func TestWatchdogInterval(t *testing.T) {
	for _, test := range []struct {
		pid, usec string
		want      time.Duration
	}{
		{"", "", 0}, {"", "0", 0}, {"", "-5", 0}, {"", "x", 0},
		{"", "30000000", 15 * time.Second},
		{strconv.Itoa(os.Getpid()), "2000000", time.Second},
		{"1", "2000000", 0},
	} {
		t.Setenv("WATCHDOG_PID", test.pid)
		t.Setenv("WATCHDOG_USEC", test.usec)
		if got := WatchdogInterval(); got != test.want {
			t.Errorf("%+v: %s", test, got)
		}
	}
}
