// Package ocitest provides images, layouts and faulty registries for the tests of package
// oci and those below it.
package ocitest
