// Package transfer copies images between registries and OCI layouts: Fetch and Push.
package transfer
