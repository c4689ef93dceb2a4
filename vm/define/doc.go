// Package define manages the persistent domains of administrators: it defines domains from
// images, clones domains, and captures domains for images. No job needs it.
package define
