//go:build boot && !nightly

package e2e

// nightly is false: the tests try the rows that stand for the others.
const nightly = false
