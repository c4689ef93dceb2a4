package rpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A fixture is a running server with the methods echo, wait and fail.
type fixture struct {
	socket  string
	client  *http.Client
	waiting chan context.Context // the contexts of calls of wait
	resume  chan struct{}        // lets a call of wait end
	stop    context.CancelFunc
	ended   chan error
}

func start(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{
		socket: filepath.Join(t.TempDir(), "s"), waiting: make(chan context.Context, 8), resume: make(chan struct{}, 8), ended: make(chan error, 1),
	}
	listener, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &Server{Log: log.New(io.Discard, "", 0), Methods: map[string]Method{
		"/s/echo": func(_ context.Context, request []byte) ([]byte, error) { return request, nil },
		"/s/wait": func(ctx context.Context, _ []byte) ([]byte, error) {
			f.waiting <- ctx
			select {
			case <-f.resume:
				return []byte("done"), nil
			case <-ctx.Done():
				return nil, Errorf(DeadlineExceeded, "%v", ctx.Err())
			}
		},
		"/s/fail": func(_ context.Context, request []byte) ([]byte, error) {
			return nil, fmt.Errorf("wrapped: %w", Errorf(NotFound, "%s", request))
		},
		"/s/other": func(context.Context, []byte) ([]byte, error) { return nil, errors.New("other") },
	}}
	ctx, stop := context.WithCancel(t.Context())
	f.stop = stop
	go func() { f.ended <- server.Serve(ctx, listener) }()
	f.client = newClient(f.socket)
	t.Cleanup(func() {
		stop()
		f.client.CloseIdleConnections()
		select {
		case err := <-f.ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Error("the server did not end")
		}
	})
	return f
}

func newClient(socket string) *http.Client {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}, Protocols: &http.Protocols{}}
	transport.Protocols.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: transport}
}

// framed is a message with its prefix.
func framed(message string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
}

// An answer is what a client gets: the status, and the message of the body.
type answer struct {
	http          int
	code, message string
	body          string
}

func (f *fixture) call(t *testing.T, path string, body io.Reader, headers ...string) answer {
	t.Helper()
	a, err := f.try(t.Context(), path, body, headers...)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (f *fixture) try(ctx context.Context, path string, body io.Reader, headers ...string) (a answer, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://localhost"+path, body)
	if err != nil {
		return a, err
	}
	r.Header.Set("Content-Type", contentType)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	resp, err := f.client.Do(r)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return a, err
	}
	status := resp.Trailer
	if resp.Header.Get("Grpc-Status") != "" {
		status = resp.Header
	}
	a = answer{http: resp.StatusCode, code: status.Get("Grpc-Status"), body: string(text)}
	if a.message, err = url.PathUnescape(status.Get("Grpc-Message")); err != nil {
		return a, err
	}
	return a, nil
}

func TestCalls(t *testing.T) {
	f := start(t)
	large := strings.Repeat("x", maxMessage)
	for _, test := range []struct {
		name, path string
		body       []byte
		headers    []string
		want       answer
	}{
		{"a message", "/s/echo", framed("hello"), nil, answer{200, "0", "", string(framed("hello"))}},
		{"no fields", "/s/echo", framed(""), nil, answer{200, "0", "", string(framed(""))}},
		{"the largest", "/s/echo", framed(large), nil, answer{200, "0", "", string(framed(large))}},
		{"too large", "/s/echo", framed(large + "x"), nil, answer{200, "8", "the request is larger than max (4194305 vs. 4194304 bytes)", ""}},
		{"4 GiB that do not come", "/s/echo", []byte{0, 255, 255, 255, 255}, nil, answer{200, "8", "the request is larger than max (4294967295 vs. 4194304 bytes)", ""}},
		{"with a parameter", "/s/echo", framed("a"), []string{"Content-Type", "application/grpc+proto; charset=x", "Grpc-Timeout", "99999999H"}, answer{200, "0", "", string(framed("a"))}},
		{"an error", "/s/fail", framed("50 % “ä”\r\n\x00"), nil, answer{200, "5", "wrapped: 50 % “ä”\r\n\x00", ""}},
		{"an error that is not UTF-8", "/s/fail", framed("\xff"), nil, answer{200, "5", "wrapped: \ufffd", ""}},
		{"another error", "/s/other", framed(""), nil, answer{200, "2", "other", ""}},
		{"no method", "/s/none", framed(""), nil, answer{200, "12", `there is no method "/s/none"`, ""}},
		{"compressed", "/s/echo", []byte{1, 0, 0, 0, 0}, nil, answer{200, "12", "compressed requests are not supported", ""}},
		{"empty", "/s/echo", nil, nil, answer{200, "13", "read the request: EOF", ""}},
		{"half a prefix", "/s/echo", []byte{0, 0}, nil, answer{200, "13", "read the request: unexpected EOF", ""}},
		{"too short", "/s/echo", framed("hello")[:8], nil, answer{200, "13", "read the request: want one message of 5 bytes", ""}},
		{"two messages", "/s/echo", append(framed("a"), framed("b")...), nil, answer{200, "13", "read the request: want one message of 1 bytes", ""}},
		{"a timeout", "/s/wait", framed(""), []string{"Grpc-Timeout", "1m"}, answer{200, "4", "context deadline exceeded", ""}},
		{"a timeout without digits", "/s/echo", framed(""), []string{"Grpc-Timeout", "S"}, answer{200, "13", `malformed grpc-timeout: "S"`, ""}},
		{"a timeout without unit", "/s/echo", framed(""), []string{"Grpc-Timeout", "10"}, answer{200, "13", `malformed grpc-timeout: "10"`, ""}},
		{"a timeout that is too long", "/s/echo", framed(""), []string{"Grpc-Timeout", "000000001S"}, answer{200, "13", `malformed grpc-timeout: "000000001S"`, ""}},
		{"no gRPC", "/s/echo", framed(""), []string{"Content-Type", "application/grpc-web"}, answer{415, "", "", "this is a gRPC server\n"}},
	} {
		if got := f.call(t, test.path, bytes.NewReader(test.body), test.headers...); got != test.want {
			t.Errorf("%s: got %.200v, want %.200v", test.name, got, test.want)
		}
	}
}

// A call ends when its client is gone.
func TestClientGone(t *testing.T) {
	f := start(t)
	ctx, leave := context.WithCancel(t.Context())
	go func() {
		<-f.waiting
		leave()
	}()
	if a, err := f.try(ctx, "/s/wait", bytes.NewReader(framed(""))); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, %v", a, err)
	}
}

// A server that ends waits for the calls that have begun, and answers them; not for clients that
// do not go on.
func TestEnd(t *testing.T) {
	f := start(t)
	silent, err := net.Dial("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	answered := make(chan error, 1)
	go func() {
		a, err := f.try(t.Context(), "/s/wait", bytes.NewReader(framed("")))
		if want := (answer{200, "0", "", string(framed("done"))}); err == nil && a != want {
			err = fmt.Errorf("got %v", a)
		}
		answered <- err
	}()
	ctx := <-f.waiting
	f.stop()
	for {
		conn, err := net.Dial("unix", f.socket)
		if err != nil {
			break // it has begun to end
		}
		conn.Close()
	}
	select {
	case err := <-f.ended:
		t.Fatalf("the server ended before the call: %v", err)
	case <-ctx.Done():
		t.Fatal("the call ended before the client and its method")
	case f.resume <- struct{}{}:
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
	err = <-f.ended
	f.ended <- err
	if err != nil {
		t.Error(err)
	}
}

// What does not read, or is not, HTTP/2 is closed, and harms no other.
func TestHostileClients(t *testing.T) {
	f := start(t)
	for _, text := range []string{"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + strings.Repeat("\xff", 64), strings.Repeat("\x00", 100<<10)} {
		conn, err := net.Dial("unix", f.socket)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte(text)) // it may be closed before the end
		_, _ = io.Copy(io.Discard, conn)
		conn.Close()
	}
	if got := f.call(t, "/s/echo", bytes.NewReader(framed("a"))); got.code != "0" {
		t.Errorf("got %v", got)
	}
}

func FuzzRead(f *testing.F) {
	for _, seed := range []string{"", "\x00\x00\x00\x00\x00", "\x00\x00\x00\x00\x01a", "\x01\x00\x00\x00\x01a", "\x00\xff\xff\xff\xff", "\x00\x00\x00\x00\x01ab"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		message, err := read(&http.Request{Body: io.NopCloser(bytes.NewReader(body))})
		if err == nil && !bytes.Equal(framed(string(message)), body) {
			t.Errorf("%q is no message of %q", message, body)
		}
		if code, _ := statusOf(err); code == Unknown {
			t.Errorf("%q: %v has no code", body, err)
		}
	})
}
