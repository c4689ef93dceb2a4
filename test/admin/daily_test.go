//go:build boot && !nightly

package admin

// nightly is false: a test runs in one mode, if that stands for both.
const nightly = false
