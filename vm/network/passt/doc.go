// Package passt runs one passt process for each guest on the user network.
package passt
