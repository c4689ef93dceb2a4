package serve

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/metrics"
)

// A fixture is a server with a settings file of its own.
type fixture struct {
	*Server
	file   string
	reload chan os.Signal
}

func newServer(t *testing.T, text string, components ...Component) *fixture {
	t.Helper()
	dir := t.TempDir()
	f := &fixture{file: filepath.Join(dir, "config.toml"), reload: make(chan os.Signal)}
	f.write(t, "[defaults]\nstorage = '"+filepath.Join(dir, "storage")+"'\n"+text)
	current, err := NewCurrent(func() (*config.Settings, error) { return config.Load(f.file) })
	if err != nil {
		t.Fatal(err)
	}
	f.Server = &Server{
		Env:        Env{Settings: current, Log: slog.New(slog.DiscardHandler), Metrics: &metrics.Live{}},
		Components: components, Reload: f.reload,
	}
	return f
}

func (f *fixture) write(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(f.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// start runs the server; stop ends it and returns its error.
func (f *fixture) start(t *testing.T) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	return func() error {
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(10 * time.Second):
			return errors.New("the server did not end")
		}
	}
}

// A part is a component of tests.
type part struct {
	run    func(context.Context) error
	health error
}

func (*part) Name() string                    { return "part" }
func (p *part) Health() error                 { return p.health }
func (p *part) Run(ctx context.Context) error { return p.run(ctx) }

// get asks the server at the socket, and waits until it listens.
func get(t *testing.T, socket, path string) (int, string) {
	t.Helper()
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	for deadline := time.Now().Add(10 * time.Second); ; {
		answer, err := client.Get("http://serve" + path)
		if err != nil {
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
			continue
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, string(text)
	}
}

func TestPagesAndTheirSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "run", "serve.sock")
	sick := &part{run: func(ctx context.Context) error { <-ctx.Done(); return nil }, health: errors.New("no libvirt")}
	s := newServer(t, "metrics_textfile = '"+filepath.Join(t.TempDir(), "m.prom")+"'\n[serve]\nlisten = 'unix://"+socket+"'\n", sick)
	var stages metrics.Changes
	stages.Count("sardine_jobs_total", 3, "result", "success")
	if err := stages.Write(s.Settings.Get().Defaults.MetricsTextfile); err != nil {
		t.Fatal(err)
	}
	stop := s.start(t)
	dirs, err := s.Settings.Get().Dirs()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if info, err := os.Stat(filepath.Dir(dirs.Jobs)); err != nil || info.Mode().Perm()&0o001 == 0 {
			t.Errorf("QEMU cannot pass through a new storage: %v, %v", info, err)
		}
	}()
	var changes metrics.Changes
	changes.Set("sardine_machines", 2)
	s.Metrics.Add(&changes)
	if status, text := get(t, socket, "/metrics"); status != 200 || !strings.Contains(text, "sardine_machines 2\n") || !strings.Contains(text, `sardine_jobs_total{result="success"} 3`) {
		t.Errorf("/metrics: %d, %s", status, text)
	}
	if status, text := get(t, socket, "/healthz"); status != 503 || text != "part: no libvirt\n" {
		t.Errorf("/healthz: %d, %q", status, text)
	}
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != socketMode {
		t.Errorf("socket: %v, %v", info, err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(socket); err == nil {
		t.Error("the socket is still there")
	}
}

func TestSocketOfADeadProcessIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	syscall.Close(fd)
	first, err := ListenUnix(path, -1)
	if err != nil {
		t.Fatal(err)
	}
	if got := first.Addr().String(); got != path {
		t.Errorf("it listens at %s, want %s", got, path)
	}
	if second, err := ListenUnix(path, -1); err == nil {
		second.Close()
		t.Error("two listen at one path")
	}
	first.Close()
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if third, err := ListenUnix(path, -1); err == nil {
		third.Close()
		t.Error("a file that is no socket was replaced")
	}
}

func TestOneServeForAStorage(t *testing.T) {
	started := make(chan struct{})
	s := newServer(t, "", &part{run: func(ctx context.Context) error { close(started); <-ctx.Done(); return nil }})
	stop := s.start(t)
	<-started
	second := *s.Server
	second.Components = nil
	if err := second.Run(t.Context()); !errors.Is(err, errRunning) {
		t.Errorf("second serve: %v", err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestFailureOfAComponentEndsServe(t *testing.T) {
	other := make(chan struct{})
	s := newServer(t, "",
		&part{run: func(context.Context) error { return errors.New("cannot get better") }},
		&part{run: func(ctx context.Context) error { <-ctx.Done(); close(other); return nil }})
	ended := make(chan error, 1)
	go func() { ended <- s.Run(t.Context()) }()
	if err := <-ended; err == nil || err.Error() != "part: cannot get better" {
		t.Errorf("got %v", err)
	}
	<-other
}

func TestReload(t *testing.T) {
	s := newServer(t, "slots = 1\n")
	before, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	stop := s.start(t)
	changed := s.Settings.Changed()
	s.write(t, strings.Replace(string(before), "slots = 1", "slots = 2\nimage_dir = '/elsewhere'", 1))
	s.reload <- syscall.SIGHUP
	<-changed
	if got := s.Settings.Get().Defaults; got.Slots != 2 || got.ImageDir != "" {
		t.Errorf("after the reload: slots %d, image_dir %q", got.Slots, got.ImageDir)
	}
	// A mistake changes nothing.
	s.write(t, "[defaults]\nslotz = 3\n")
	s.reload <- syscall.SIGHUP
	s.reload <- syscall.SIGHUP // the first is done when the second is taken
	if got := s.Settings.Get().Defaults.Slots; got != 2 {
		t.Errorf("slots %d", got)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestChangedFileIsSeen(t *testing.T) {
	s := newServer(t, "slots = 1\n")
	if s.Settings.fileChanged() {
		t.Error("changed before any change")
	}
	s.write(t, "[defaults]\nslots = 22\n")
	if !s.Settings.fileChanged() {
		t.Error("a change is not seen")
	}
	if _, err := s.Settings.reload(); err != nil || s.Settings.fileChanged() {
		t.Errorf("changed after the reload, %v", err)
	}
	if err := os.Remove(s.file); err != nil {
		t.Fatal(err)
	}
	if s.Settings.fileChanged() {
		t.Error("a file that is being replaced counts as changed")
	}
}
