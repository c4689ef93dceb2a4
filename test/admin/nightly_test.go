//go:build boot && nightly

package admin

// nightly has the tests run in both modes.
const nightly = true
