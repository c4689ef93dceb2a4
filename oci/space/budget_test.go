package space

import (
	"testing"
	"time"
)

// TestStorageReserveKept: the reserve is there at any time, near its end too.
func TestStorageReserveKept(t *testing.T) {
	r := &Budget{dir: t.TempDir(), Reserve: Reserve{Bytes: 1000}}
	free := int64(100 << 20)
	r.Ask = func(string) (Room, error) { return Room{Free: free, Total: 1 << 40}, nil }
	for n := int64(1); ; n = n*7%4096 + 1 {
		if err := r.Spend(n); err != nil {
			break
		}
		if free -= n; free < 1000 {
			t.Fatalf("%d bytes are free", free)
		}
	}
	if free > 1000+4096 {
		t.Errorf("refused at %d bytes", free)
	}
}

// A pull that hardly proceeds claims no more room than it uses.
func TestPaceOfAPull(t *testing.T) {
	const gib = 1 << 30
	for name, test := range map[string]struct {
		elapsed           time.Duration
		needed, allocated int64
		want              int64
	}{
		"just begun":              {time.Second, 100 * gib, 0, 100 * gib},
		"well on its way":         {2 * time.Minute, 30 * gib, 20 * gib, 10 * gib},
		"nothing in five minutes": {5 * time.Minute, 100 * gib, 0, 0},
		"a trickle":               {10 * time.Minute, 100 * gib, 1 << 20, 1 << 20},
		"complete":                {time.Second, gib, gib + 4096, 0},
		"a clock set back":        {-time.Hour, gib, 0, gib},
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Now()
			a := Announcement{Since: now.Add(-test.elapsed), Needed: test.needed}
			if got := a.due(now, test.allocated); got != test.want {
				t.Errorf("due are %d bytes, want %d", got, test.want)
			}
		})
	}
}
