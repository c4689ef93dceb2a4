package keeper

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// residentFile returns how much memory of this process is mapped from files, in KiB.
func residentFile(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, value, _ := strings.Cut(string(status), "\nRssFile:")
	n, err := strconv.Atoi(strings.Fields(value)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestRestGivesBackTheProgram(t *testing.T) {
	before := residentFile(t)
	rest()
	if after := residentFile(t); after >= before {
		t.Errorf("%d KiB of files are resident, %d before", after, before)
	}
}

// What differs from the file exists nowhere else.
func TestUnchanged(t *testing.T) {
	const smaps = `00400000-00c00000 r-xp 00000000 fe:00 101                                /usr/bin/program
Size:               8192 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
00c00000-00e00000 r--p 00800000 fe:00 101                                /usr/bin/program
Anonymous:            12 kB
00e00000-01000000 rw-p 00a00000 fe:00 101                                /usr/bin/program
Anonymous:             0 kB
01000000-01200000 r--p 00c00000 fe:00 101                                /usr/bin/program
Anonymous:             0 kB
7f0000000000-7f0000100000 r-xp 00000000 fe:00 102                        /usr/lib/libc.so.6
Anonymous:             0 kB
7f0000200000-7f0000300000 r--p 00000000 00:00 0
Anonymous:             0 kB
7f0000400000-7f0000500000 r-xp 00000000 fe:00 101                        /usr/bin/program (deleted)
Anonymous:             0 kB
`
	want := []mapping{{0x400000, 0xc00000}, {0x1000000, 0x1200000}}
	if got := unchanged(strings.NewReader(smaps), "/usr/bin/program"); !slices.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
}
