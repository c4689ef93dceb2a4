// Package e2e tests the program from the outside: the built binary, called by
// GitLab Runner's part, with a real registry, a real libvirtd and a guest that
// boots. Every test runs as an ordinary user (session mode) and as root (system
// mode), and ends with a look for anything left behind.
//
//	go test -count=1 ./e2e [-mode session|system]
//
// -count=1, because Go does not see that the program has changed.
package e2e
