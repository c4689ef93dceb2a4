package executor

import (
	"cmp"
	"errors"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/failure"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/seed"
)

// errNoUser: there are credentials, and nobody to use them.
var errNoUser = errors.New("the settings say how to log in to the guest, but nobody says as whom: " +
	"the image has no VM config with users, and the settings have no username")

// loginFor is how to log in to a guest of an image. If neither the image nor the
// settings say how, as with the images that distributions make for clouds, the
// guest gets a key of the job when it boots, by the seed; else that is nil.
func loginFor(settings config.Resolved, guest oci.GuestConfig) (guestssh.Login, *seed.Seed, error) {
	login := settings.Login(guest)
	if login.User != "" && (login.Password != "" || login.IdentityFile != "" || login.Agent) {
		return login, nil, nil
	}
	if login.Password != "" || login.IdentityFile != "" || login.Agent {
		return login, nil, failure.OfJob(errNoUser)
	}
	seed, err := seed.New(cmp.Or(login.User, seed.DefaultUser))
	if err != nil {
		return login, nil, err
	}
	return seed.Login(), seed, nil
}
