package space

import "testing"

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
