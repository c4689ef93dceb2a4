// Package ocitest has what the tests of several packages of oci share: images made by
// hand, and registries that fail.
package ocitest
