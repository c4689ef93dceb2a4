package keeper

import (
	"bufio"
	"io"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// rest gives back the memory that this process does not need while it waits, possibly for
// hours: what pulls and boots needed of the heap, which the runtime would keep, and the pages
// of the program itself that were mapped at its start or for a pull. The kernel keeps the
// latter in its page cache, and maps those that are needed again.
func rest() {
	debug.FreeOSMemory()
	name, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	smaps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer smaps.Close()
	for _, m := range unchanged(smaps, name) {
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.begin, m.end-m.begin, unix.MADV_DONTNEED)
	}
}

// A mapping is a range of addresses.
type mapping struct{ begin, end uintptr }

// unchanged returns the mappings of the file, from the smaps of a process (proc_pid_smaps(5)),
// that cannot be written to and of which no page differs from the file. A page that differs,
// such as one that the dynamic linker has relocated, would be lost.
func unchanged(smaps io.Reader, file string) (found []mapping) {
	var m *mapping
	for lines := bufio.NewScanner(smaps); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) == 6 && fields[5] == file && !strings.Contains(fields[1], "w"):
			begin, end, _ := strings.Cut(fields[0], "-")
			from, err := strconv.ParseUint(begin, 16, 64)
			to, err2 := strconv.ParseUint(end, 16, 64)
			if err == nil && err2 == nil {
				m = &mapping{uintptr(from), uintptr(to)}
			}
		case len(fields) >= 5 && strings.Contains(fields[0], "-"):
			m = nil // of another file, or of none
		case len(fields) == 3 && fields[0] == "Anonymous:":
			if m != nil && fields[1] == "0" {
				found = append(found, *m)
			}
			m = nil
		}
	}
	return found
}
