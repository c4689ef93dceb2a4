// Package layout reads and writes OCI layouts on this machine.
package layout
