// Package admin is what an administrator does by hand: look at a host, its images and
// its machines, import and export virtual machines, and try an image.
package admin
