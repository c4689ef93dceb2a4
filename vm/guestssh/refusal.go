package guestssh

import (
	"bytes"
	"net"
	"regexp"
	"strconv"
	"time"
)

// Pauses between logins that are refused. The server may forbid the address for a while.
//
// OpenSSH 9.8 and later add 5 s to the penalty of an address for each refused login, and
// 1 s for each connection without a login. A second later the penalty is a second less.
// At 15 s no connection is accepted any more (PerSourcePenalties in sshd_config(5)). These
// pauses keep it below 13 s.
var (
	penalizedPauses = []time.Duration{2 * time.Second, 4 * time.Second, 5 * time.Second, 6 * time.Second}
	plainPauses     = []time.Duration{500 * time.Millisecond, time.Second, 1500 * time.Millisecond, 2 * time.Second}
)

// A Refusals counts the logins that the server of one guest refused.
type Refusals struct {
	// Count of refusals, and the time since when the server has answered.
	Count int
	Since time.Time
}

// Pause returns how long to wait after a refusal before the next login. conn is the
// connection of the refused login, which [Dial] made.
func (r *Refusals) Pause(conn net.Conn) time.Duration {
	pauses := plainPauses
	if c, ok := conn.(*prefetchedConn); !ok || penalizes(c.banner) {
		pauses = penalizedPauses
	}
	r.Count++
	return pauses[min(r.Count, len(pauses))-1]
}

var openSSH = regexp.MustCompile(`^SSH-2\.0-OpenSSH_(?:for_Windows_)?(\d+)\.(\d+)`)

// penalizes reports whether the server that sent this banner is an OpenSSH with
// PerSourcePenalties, or hides its version.
func penalizes(banner []byte) bool {
	m := openSSH.FindSubmatch(banner)
	if m == nil {
		return bytes.HasPrefix(banner, []byte("SSH-2.0-OpenSSH"))
	}
	major, _ := strconv.Atoi(string(m[1]))
	minor, _ := strconv.Atoi(string(m[2]))
	return major > 9 || major == 9 && minor >= 8
}

// penalty is what OpenSSH sends instead of a banner to an address with a penalty (sshd.c).
var penalty = []byte("Not allowed at this time")

// penaltyPause follows such an answer.
const penaltyPause = 2 * time.Second

// attempted finds the methods in the error of x/crypto/ssh for a login that was refused.
var attempted = regexp.MustCompile(`attempted methods \[(?:none ?)?([^\]]*)\]`)

// methodsIn returns the methods that a refused login has tried, for a message.
func methodsIn(err error) string {
	if m := attempted.FindStringSubmatch(err.Error()); m != nil && m[1] != "" {
		return m[1]
	}
	return "no method of ours"
}
