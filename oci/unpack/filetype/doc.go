// Package filetype recognizes files by their first bytes.
package filetype
