// Package space knows the room on a file system, and keeps some of it free.
package space
