// Package fileutil writes files that survive a power failure, and opens regular files.
package fileutil
