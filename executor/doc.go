// Package executor runs the four stages of a job for GitLab Runner's custom executor.
//
// It is the only place where an image of package oci becomes a machine of package vm.
package executor
