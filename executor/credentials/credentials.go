// Package credentials decides how to log in to the guest of an image.
package credentials

import (
	"cmp"
	"errors"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/failure"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/seed"
)

// errNoUser says that there are credentials but no user.
var errNoUser = errors.New("the settings have credentials for the guest but no username, " +
	"and the image has no VM config with users: set username for this image")

// For returns the login to a guest of an image. If neither the image nor the
// settings have credentials, as with cloud images of distributions, the seed gives the
// guest a key of the job at boot; else seed is nil.
func For(settings config.Resolved, guest oci.GuestConfig) (guestssh.Login, *seed.Seed, error) {
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
