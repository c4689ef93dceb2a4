// Package sparse writes files with holes.
package sparse
