// Package filetype says what a file is by its first bytes.
package filetype
