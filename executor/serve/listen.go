package serve

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

const (
	// socketMode lets the group of serve connect, for example Prometheus.
	socketMode = 0o660
	// httpTimeout bounds each request and its answer.
	httpTimeout = 10 * time.Second
)

// A page answers /metrics and /healthz.
type page struct {
	server   *Server
	listener net.Listener // nil: nowhere
}

// listen opens the address of the setting listen.
func (s *Server) listen() (*page, error) {
	network, address, err := s.Settings.Get().Serve.Address()
	if err != nil || network == "" {
		return &page{server: s}, err
	}
	var listener net.Listener
	if network == "unix" {
		listener, err = ListenUnix(address, -1)
	} else if listener, err = net.Listen(network, address); err != nil {
		err = fmt.Errorf("listen at %s (the setting serve.listen): %w", address, err)
	}
	if err != nil {
		return nil, err
	}
	return &page{s, listener}, nil
}

// ListenUnix listens at the path of a socket, which the group with that ID may use; -1 means
// the group of this process. A socket where nothing listens is left over from a process that
// died, and is replaced. The socket is removed when the listener is closed.
func ListenUnix(path string, group int) (net.Listener, error) {
	// All users pass through the directory, and see nothing of it: the sockets have modes.
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	if err := removeStale(path); err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	// In a directory of its own, so that the socket has its mode before anything can
	// connect.
	dir, err := os.MkdirTemp(filepath.Dir(path), ".listen-")
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	defer os.RemoveAll(dir)
	hidden := filepath.Join(dir, "s")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: hidden, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	listener.SetUnlinkOnClose(false)
	if err = os.Chown(hidden, -1, group); err == nil {
		err = os.Chmod(hidden, socketMode)
	}
	if err == nil {
		err = os.Rename(hidden, path)
	}
	if err != nil {
		listener.Close()
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	return &socket{listener, path}, nil
}

// removeStale removes a socket where nothing listens.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("there is a file that is no socket")
	}
	conn, err := net.DialTimeout("unix", path, httpTimeout)
	if err == nil {
		conn.Close()
		return errors.New("another process listens there")
	}
	return os.Remove(path)
}

// A socket is removed when it is closed.
type socket struct {
	net.Listener
	path string
}

// Addr is where clients find it.
func (s *socket) Addr() net.Addr { return &net.UnixAddr{Name: s.path, Net: "unix"} }

func (s *socket) Close() error { return errors.Join(os.Remove(s.path), s.Listener.Close()) }

func (p *page) Name() string  { return "listen" }
func (p *page) Health() error { return nil }

// Run answers requests until ctx ends.
func (p *page) Run(ctx context.Context) error {
	if p.listener == nil {
		return nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", p.metrics)
	mux.HandleFunc("GET /healthz", p.health)
	server := &http.Server{
		Handler: mux, ReadTimeout: httpTimeout, WriteTimeout: httpTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}
	context.AfterFunc(ctx, func() { server.Close() })
	if err := server.Serve(p.listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// metrics also shows those that the stages write to metrics_textfile.
func (p *page) metrics(w http.ResponseWriter, _ *http.Request) {
	text, err := p.server.Metrics.Text(p.server.Settings.Get().Defaults.MetricsTextfile)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = w.Write(text)
}

// health says what is wrong with each component, with the status 503, or "ok".
func (p *page) health(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	var wrong []string
	for _, c := range p.server.Components {
		if err := c.Health(); err != nil {
			wrong = append(wrong, fmt.Sprintf("%s: %v\n", c.Name(), err))
		}
	}
	if len(wrong) == 0 {
		fmt.Fprintln(w, "ok")
		return
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	for _, line := range wrong {
		fmt.Fprint(w, line)
	}
}
