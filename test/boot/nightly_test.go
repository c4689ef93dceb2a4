//go:build boot && nightly

package boot

// nightly has the tests run in both modes.
const nightly = true
