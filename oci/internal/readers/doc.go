// Package readers has small readers and writers that the packages of oci share.
package readers
