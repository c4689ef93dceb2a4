// Package source opens the registry or layout that a reference names, and inspects images.
package source
