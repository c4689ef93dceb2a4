// Package layout reads and writes OCI image layouts on the local file system.
package layout
