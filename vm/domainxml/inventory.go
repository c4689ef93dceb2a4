package domainxml

import (
	"encoding/xml"
	"fmt"
	"strings"
)

// An inventory counts the elements, attributes and texts of a document by their
// path below <domain>: "devices/disk", "devices/disk/target/@dev", "os/type/text()".
// The difference between two inventories shows everything that was lost, also unknown
// elements.
type inventory struct {
	count map[string]int
	order []string // of first appearance
}

func newInventory() *inventory { return &inventory{count: map[string]int{}} }

func (i *inventory) add(path string) {
	if i.count[path] == 0 {
		i.order = append(i.order, path)
	}
	i.count[path]++
}

// maxMissing is the maximum length of the list, which is written to the job log.
const maxMissing = 60

// missing lists the paths that occur less often in kept. It omits the content of elements that
// are missing completely.
func (i *inventory) missing(kept *inventory) []string {
	var lost []string
	for _, path := range i.order {
		was, is := i.count[path], kept.count[path]
		if is >= was || ordinary(path) {
			continue
		}
		if parent := parentOf(path); parent != "" && kept.count[parent] < i.count[parent] &&
			(is > 0 || kept.count[parent] == 0) {
			continue
		}
		if was > 1 && is > 0 {
			path = fmt.Sprintf("%s (%d of %d)", path, was-is, was)
		}
		lost = append(lost, path)
	}
	if more := len(lost) - maxMissing; more > 0 {
		lost = append(lost[:maxMissing], fmt.Sprintf("and %d more", more))
	}
	return lost
}

// ordinaryPaths are specific to one machine or one host and never taken from an image. They are
// not listed: the list would hide what matters.
var ordinaryPaths = []string{
	"@id", "name", "uuid", "title", "description", "metadata", "memory/@dumpCore", "vcpu/@placement",
	"devices/emulator", "devices/interface/@type", "devices/interface/mac", "devices/interface/source",
	"devices/interface/target", "devices/disk/driver", "devices/disk/backingStore", "devices/disk/source/@index",
	"devices/serial/source", "devices/console/source", "devices/console/@tty", "devices/channel/source",
	"devices/channel/target/@state", "os/loader/@readonly", "os/loader/@type", "seclabel",
}

func ordinary(path string) bool {
	for _, o := range ordinaryPaths {
		if path == o || strings.HasPrefix(path, o+"/") {
			return true
		}
	}
	return strings.HasSuffix(path, "/alias") || strings.HasSuffix(path, "/alias/@name")
}

func join(path []string, last string) string {
	if len(path) == 0 {
		return last
	}
	return strings.Join(path, "/") + "/" + last
}

func parentOf(path string) string {
	if n := strings.LastIndexByte(path, '/'); n >= 0 {
		return path[:n]
	}
	return ""
}

// label returns the readable name of an element. It omits the URI of an unknown namespace, which
// is untrusted text.
func label(n xml.Name) string {
	local := n.Local
	if len(local) > 64 {
		local = local[:64]
	}
	switch n.Space {
	case "":
		return local
	case qemuNamespace:
		return "qemu:" + local
	default:
		return "foreign:" + local
	}
}
