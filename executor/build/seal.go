package build

import (
	"context"
	_ "embed" // the script
	"fmt"
	"strings"
	"time"

	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/vm/guestssh"
)

// sealScript removes from the guest what must differ between machines, and what a build
// leaves. $1 is the key of the build; empty if the guest has none.
//
//go:embed scripts/seal.sh
var sealScript string

// readSeal runs the script from standard input, since Dropbear refuses commands that are
// that long. It has an empty standard input then.
const readSeal = `script=$(cat) && eval "$script" </dev/null`

// seal prepares the guest for many machines. The connection stays usable.
func (m *machine) seal(ctx context.Context) error {
	began := time.Now()
	end := m.b.Log.Section("sardine_seal", "Sealing the image")
	defer end()
	ctx, cancel := context.WithTimeout(ctx, m.b.Timeout)
	defer cancel()
	if err := runAsRoot(ctx, m.started.Instance, m.b.Log, strings.NewReader(sealScript), readSeal, publicKey(m.login)); err != nil {
		return fmt.Errorf("seal the guest: %w", err)
	}
	m.b.Log.Say("Sealed (%s)", joblog.Seconds(time.Since(began)))
	return nil
}

// publicKey returns the public key of a login, without type and comment.
func publicKey(login guestssh.Login) string {
	fields := strings.Fields(login.PublicKey())
	if len(fields) < 2 {
		return ""
	}
	return fields[1]
}
