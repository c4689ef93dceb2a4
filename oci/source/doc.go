// Package source opens the registry or the layout that a reference names, and inspects
// what is there.
package source
