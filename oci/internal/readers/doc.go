// Package readers has the readers that the packages of oci share.
package readers
