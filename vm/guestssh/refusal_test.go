package guestssh

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// The penalty of an OpenSSH 9.8 for our logins, and for two other connections before each of
// the first, stays below the 15 s at which it refuses connections.
func TestPausesAvoidPenalties(t *testing.T) {
	conn := &prefetchedConn{banner: []byte("SSH-2.0-OpenSSH_10.0p2 Debian-7\r\n")}
	var refusals Refusals
	penalty, passed := 2*time.Second, time.Duration(0)
	for passed < 10*time.Minute {
		if penalty += 5 * time.Second; penalty >= 15*time.Second {
			t.Fatalf("a penalty of %v after %v and %d logins", penalty, passed, refusals.Count+1)
		}
		pause := refusals.Pause(conn)
		penalty, passed = max(0, penalty-pause), passed+pause
	}
	if first := (&Refusals{}).Pause(conn); first > 2*time.Second {
		t.Errorf("the second login comes after %v", first)
	}
}

func TestPenalizes(t *testing.T) {
	for banner, want := range map[string]bool{
		"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u7\r\n": false,
		"SSH-2.0-OpenSSH_9.8\r\n":                    true,
		"SSH-2.0-OpenSSH_10.0p2":                     true,
		"SSH-2.0-OpenSSH_for_Windows_9.5\r\n":        false,
		"SSH-2.0-OpenSSH\r\n":                        true,
		"SSH-2.0-dropbear_2022.83\r\n":               false,
		"":                                           false,
	} {
		if got := penalizes([]byte(banner)); got != want {
			t.Errorf("%q: %v, want %v", banner, got, want)
		}
	}
}

// The error of a refused login says who and how.
func TestRefusalSaysWhatWasTried(t *testing.T) {
	s := newSSHServer(t)
	_, err := logIn(t, s, Login{User: "ci", Password: "guess"}, nil)
	if !errors.Is(err, ErrLogin) || !strings.Contains(err.Error(), `user "ci", by password`) {
		t.Errorf("got %v", err)
	}
}

// A guest whose PAM asks for a new password in the course of the login gets none.
func TestNoNewPasswordIsGiven(t *testing.T) {
	s := newSSHServer(t)
	_, err := logIn(t, s, Login{User: "expired", Password: "secret"}, nil)
	if !errors.Is(err, ErrLogin) || !strings.Contains(err.Error(), "has expired") {
		t.Errorf("got %v", err)
	}
}
