package distribution

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// short makes every deadline one that a test can wait for.
func short(c *Client, d time.Duration) *Client {
	c.connectTimeout, c.tokenTimeout, c.manifestTimeout, c.commitTimeout = d, d, d, d
	return c
}

func hang(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// drip sends a byte now and then, and never all.
func drip(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	for {
		if _, err := io.WriteString(w, " "); err != nil {
			return
		}
		if http.NewResponseController(w).Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func realm(url string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf("Bearer realm=%q", url))
		w.WriteHeader(http.StatusUnauthorized)
	}
}

// TestDeadlines: a server that never gets done ends every request by itself.
func TestDeadlines(t *testing.T) {
	dripStatus := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(status)
			drip(w, r)
		}
	}
	tests := map[string]struct {
		handler http.HandlerFunc
		// realm is a token service, if there is one.
		realm  http.HandlerFunc
		status bool // known before the end
	}{
		"no manifest":       {handler: hang},
		"manifest in drips": {handler: drip},
		"no token":          {realm: hang},
		"token in drips":    {realm: drip},
		"redirect in drips": {handler: dripStatus(http.StatusFound)},
		"error in drips":    {handler: dripStatus(http.StatusNotFound), status: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t)
			handler := test.handler
			if test.realm != nil {
				handler = realm(n.serve("auth.example.com:443", otherPublicAddr, true, test.realm).url)
			}
			n.serve("registry.example.com:443", publicAddr, true, handler)
			c := short(n.client("registry.example.com"), 300*time.Millisecond)
			if test.realm != nil {
				c.manifestTimeout = time.Hour
			}
			err := actions["manifest"](t.Context(), c)
			var late *timeoutError
			var status *StatusError
			if !errors.As(err, &late) && !(test.status && errors.As(err, &status)) {
				t.Errorf("%v", err)
			}
			// The same without a deadline of its own: the meter sees to it.
			c = n.client("registry.example.com", func(o *Options) { o.StallTimeout = 300 * time.Millisecond })
			for _, step := range []string{"blob", "rest of a blob", "manifest"} {
				var stalled *StallError
				err := actions[step](t.Context(), c)
				if test.status && errors.As(err, &status) {
					continue
				}
				if !errors.As(err, &stalled) || !strings.Contains(err.Error(), "in 300ms (pull_stall_timeout): gave up") {
					t.Errorf("%s: %v", step, err)
				}
			}
		})
	}
}

// TestNoConnection: a host that does not answer, and one that does not shake hands.
func TestNoConnection(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	n.put("registry.example.com:443", publicAddr, silent.Addr().String())
	c := n.client("registry.example.com")
	transport, err := c.transport.next(mustURL(t, "https://registry.example.com/"), nil)
	if err != nil {
		t.Fatal(err)
	}
	transport.(*http.Transport).TLSHandshakeTimeout = 50 * time.Millisecond
	if err := actions["manifest"](t.Context(), c); err == nil || err.Error() != "registry.example.com: no TLS handshake within 15 s" {
		t.Errorf("no handshake: %v", err)
	}
	c = short(n.client("registry.example.com"), 50*time.Millisecond)
	c.manifestTimeout = time.Minute
	c.dial = func(ctx context.Context, _, _ string, _ allow) (net.Conn, error) {
		<-ctx.Done()
		return nil, &net.OpError{Op: "dial", Err: ctx.Err()}
	}
	if err := actions["manifest"](t.Context(), c); err == nil || err.Error() != "registry.example.com:443: no connection within 50ms" {
		t.Errorf("no connection: %v", err)
	}
	n.serve("registry.example.com:443", publicAddr, true, hang)
	c = n.client("registry.example.com")
	c.headerTimeout = 50 * time.Millisecond
	if err := actions["blob"](t.Context(), c); err == nil || !strings.Contains(err.Error(), "registry.example.com: no answer within") {
		t.Errorf("no answer: %v", err)
	}
}

// TestPushStalls: a registry that takes nothing, and one that never stores it.
func TestPushStalls(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		hangs func(r *http.Request) bool
		want  error
	}{
		"takes nothing":   {func(r *http.Request) bool { return r.Method == http.MethodPatch }, new(StallError)},
		"does not answer": {func(r *http.Request) bool { return r.Method == http.MethodPost }, new(StallError)},
		"does not store":  {func(r *http.Request) bool { return r.Method == http.MethodPut }, new(timeoutError)},
		"answers nothing": {func(r *http.Request) bool {
			if r.Method == http.MethodPatch {
				_, _ = io.Copy(io.Discard, r.Body)
				return true
			}
			return false
		}, new(timeoutError)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t)
			n.serve("registry.example.com:443", publicAddr, true, func(w http.ResponseWriter, r *http.Request) {
				if test.hangs(r) {
					hang(w, r)
					return
				}
				honest(w, r)
			})
			stall := 300 * time.Millisecond
			if _, ok := test.want.(*timeoutError); ok {
				stall = time.Minute // no stall on a busy host
			}
			c := short(n.client("registry.example.com", push, func(o *Options) { o.StallTimeout = stall }), 300*time.Millisecond)
			size := int64(64 << 20) // more than the buffers between us
			err := c.PutBlob(t.Context(), blobDigest, size, io.LimitReader(zeros{}, size))
			if fmt.Sprintf("%T", err) != fmt.Sprintf("%T", test.want) {
				t.Errorf("%T: %v", err, err)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestMeter has times of its own.
func TestMeter(t *testing.T) {
	type step struct {
		wait, pause time.Duration
		bytes       int64
	}
	repeat := func(n int, s step) []step {
		var all []step
		for range n {
			all = append(all, s)
		}
		return all
	}
	for name, test := range map[string]struct {
		steps []step
		fails bool
	}{
		"nothing comes":            {[]step{{wait: 61 * time.Second}}, true},
		"just in time":             {[]step{{wait: 59 * time.Second, bytes: 60_000}, {wait: 59 * time.Second, bytes: 60_000}}, false},
		"a byte a second":          {repeat(100, step{wait: time.Second, bytes: 1}), true},
		"999 bytes a second":       {repeat(100, step{wait: time.Second, bytes: 999}), true},
		"1100 bytes a second":      {repeat(1000, step{wait: time.Second, bytes: 1100}), false},
		"a slow reader":            {repeat(100, step{wait: time.Millisecond, pause: time.Hour, bytes: 1}), false},
		"a slow reader and a drip": {repeat(100, step{wait: time.Second, pause: time.Hour, bytes: 1}), true},
		"a start, then nothing":    {[]step{{wait: time.Second, bytes: 1 << 30}, {wait: time.Second, bytes: 1}, {wait: 60 * time.Second}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMeter(time.Minute)
				var failed error
				w := &wait{place: "registry.example.com", cancel: func(err error) { failed = err }}
				for _, s := range test.steps {
					m.begin(w)
					time.Sleep(s.wait)
					synctest.Wait()
					m.end(w, s.bytes)
					time.Sleep(s.pause)
				}
				m.mu.Lock() // as cancel is called
				if (failed != nil) != test.fails {
					t.Errorf("%v", failed)
				}
				m.mu.Unlock()
				// Let the timer go.
				time.Sleep(time.Hour)
			})
		})
	}
}

// TestMeterOfMany: one body that stands still beside one that flows is let be;
// many answers that are slow each are not.
func TestMeterOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeter(time.Minute)
		var ended error
		cancel := func(err error) { ended = err } // called with the lock
		failed := func() error {
			m.mu.Lock()
			defer m.mu.Unlock()
			err := ended
			ended = nil
			return err
		}
		idle, busy := &wait{cancel: cancel}, &wait{cancel: cancel, place: "registry.example.com"}
		m.begin(idle)
		for range 600 {
			m.begin(busy)
			time.Sleep(time.Second)
			m.end(busy, 10_000)
		}
		synctest.Wait()
		if err := failed(); err != nil {
			t.Error(err)
		}
		time.Sleep(61 * time.Second)
		synctest.Wait()
		if failed() == nil {
			t.Error("the one that is left may wait for ever")
		}
		m.end(idle, 0)
		for range 100 {
			m.begin(busy)
			time.Sleep(29 * time.Second)
			m.end(busy, 0)
			m.answered()
		}
		synctest.Wait()
		if err := failed(); err != nil {
			t.Errorf("two answers a minute: %v", err)
		}
		for range 3 {
			m.begin(busy)
			time.Sleep(59 * time.Second)
			m.end(busy, 0)
			m.answered()
		}
		if err := failed(); err == nil || err.Error() != "registry.example.com sent 29.3KiB in 60 s (pull_stall_timeout): gave up" {
			t.Errorf("an answer a minute: %v", err)
		}
		time.Sleep(time.Hour)
	})
}
