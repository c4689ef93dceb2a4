// Package sparse writes sparse files.
package sparse
