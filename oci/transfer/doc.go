// Package transfer copies images between registries and OCI layouts.
package transfer
