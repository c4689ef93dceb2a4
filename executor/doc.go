// Package executor is the driver as GitLab Runner sees it: a job, the
// administrator's settings, the four stages, and what a failure means.
//
// It joins the two rooms that know nothing of each other: it turns an image of
// package oci into a machine of package vm.
package executor
