//go:build boot && nightly

package e2e

// nightly has the tests try every row of their tables.
const nightly = true
