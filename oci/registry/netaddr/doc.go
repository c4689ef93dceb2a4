// Package netaddr classifies the network addresses that a registry leads to, and compares
// the origins of URLs.
package netaddr
