// Package rpc serves gRPC methods of one request and one response over HTTP/2, by net/http:
// https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md. Streams of messages,
// compression and TLS are left out.
//
// It is for servers of a few methods: google.golang.org/grpc adds 2 MB to a program.
package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// maxMessage bounds a request, in bytes, as gRPC servers do by default.
	maxMessage = 4 << 20
	// readTimeout bounds the time from the headers of a request to its end.
	readTimeout = 30 * time.Second
	// answerTimeout bounds how long a server that ends waits for clients to read the last
	// answers.
	answerTimeout = 2 * time.Second
	// prefixSize is that of the flag for compression and the length, before each message.
	prefixSize  = 5
	contentType = "application/grpc"
	// maxTimeoutDigits is the limit of the header grpc-timeout.
	maxTimeoutDigits = 8
)

// A Method decodes a request, and returns the encoded response. The code of an
// error is that of [Errorf], or [Unknown].
type Method func(ctx context.Context, request []byte) (response []byte, err error)

// A Server serves methods by their paths, "/package.Service/Method".
type Server struct {
	Methods map[string]Method
	// Log gets what net/http reports, such as a failure to accept.
	Log *log.Logger

	mu     sync.Mutex
	ending bool
	calls  sync.WaitGroup
}

// Serve answers calls until ctx ends, and returns when those that have begun have ended; their
// contexts do not end with ctx. It closes the listener.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	protocols := &http.Protocols{}
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: s, Protocols: protocols, ReadTimeout: readTimeout, MaxHeaderBytes: 16 << 10, ErrorLog: s.Log}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		s.end(server)
	})
	err := server.Serve(listener)
	if !stop() {
		<-ended
	}
	_ = server.Close()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// end refuses new calls, and waits for the others and their answers.
func (s *Server) end(server *http.Server) {
	s.mu.Lock()
	s.ending = true
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		s.calls.Wait()
		time.AfterFunc(answerTimeout, cancel)
	}()
	_ = server.Shutdown(ctx)
}

// begin counts a call, unless the server is ending.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ending {
		s.calls.Add(1)
	}
	return !s.ending
}

// ServeHTTP answers one call.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	if r.Method != http.MethodPost || kind != contentType && kind != contentType+"+proto" {
		http.Error(w, "this is a gRPC server", http.StatusUnsupportedMediaType)
		return
	}
	w.Header().Set("Content-Type", contentType)
	response, err := s.call(r)
	if err != nil {
		// Headers alone: "Trailers-Only" in the specification.
		setStatus(w.Header(), "", err)
		return
	}
	message := append(make([]byte, prefixSize, prefixSize+len(response)), response...)
	binary.BigEndian.PutUint32(message[1:], uint32(len(response)))
	_, _ = w.Write(message)
	setStatus(w.Header(), http.TrailerPrefix, nil)
}

func (s *Server) call(r *http.Request) ([]byte, error) {
	method := s.Methods[r.URL.Path]
	if method == nil {
		return nil, Errorf(Unimplemented, "there is no method %q", r.URL.Path)
	}
	if !s.begin() {
		return nil, Errorf(Unavailable, "the server is ending")
	}
	defer s.calls.Done()
	request, err := read(r)
	if err != nil {
		return nil, err
	}
	ctx, cancel, err := withTimeout(r.Context(), r.Header.Get("Grpc-Timeout"))
	if err != nil {
		return nil, err
	}
	defer cancel()
	return method(ctx, request)
}

// read reads the only message of a request.
func read(r *http.Request) ([]byte, error) {
	var prefix [prefixSize]byte
	if _, err := io.ReadFull(r.Body, prefix[:]); err != nil {
		return nil, Errorf(Internal, "read the request: %v", err)
	}
	if prefix[0] != 0 {
		return nil, Errorf(Unimplemented, "compressed requests are not supported")
	}
	size := binary.BigEndian.Uint32(prefix[1:])
	if size > maxMessage {
		return nil, Errorf(ResourceExhausted, "the request is larger than max (%d vs. %d bytes)", size, maxMessage)
	}
	// Not allocated before it is there.
	message, err := io.ReadAll(io.LimitReader(r.Body, int64(size)+1))
	if err == nil && len(message) != int(size) {
		err = fmt.Errorf("want one message of %d bytes", size)
	}
	if err != nil {
		return nil, Errorf(Internal, "read the request: %v", err)
	}
	return message, nil
}

// units are those of the header grpc-timeout.
var units = map[byte]time.Duration{
	'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond,
}

// withTimeout bounds a call as its header says, if there is one.
func withTimeout(ctx context.Context, header string) (context.Context, context.CancelFunc, error) {
	if header == "" {
		return ctx, func() {}, nil
	}
	digits := header[:len(header)-1]
	unit, ok := units[header[len(header)-1]]
	n, err := strconv.ParseUint(digits, 10, 32)
	if !ok || err != nil || len(digits) > maxTimeoutDigits {
		return nil, nil, Errorf(Internal, "malformed grpc-timeout: %q", header)
	}
	const maxHours = uint64(1<<63-1) / uint64(time.Hour)
	if unit == time.Hour {
		n = min(n, maxHours)
	}
	bounded, cancel := context.WithTimeout(ctx, time.Duration(n)*unit)
	return bounded, cancel, nil
}

// setStatus sets the status of a call in the headers or, with a prefix, the trailers.
func setStatus(h http.Header, prefix string, err error) {
	code, message := statusOf(err)
	h.Set(prefix+"Grpc-Status", strconv.Itoa(int(code)))
	if message != "" {
		h.Set(prefix+"Grpc-Message", url.PathEscape(message))
	}
}
