package main

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"time"

	"gitlab-sardine-executor/oci"
)

// A registry is Debian's docker-registry, and a proxy before it that counts
// requests.
type registry struct {
	host     string
	counted  string // host of the proxy
	requests atomic.Int64
	process  *exec.Cmd
	proxy    *http.Server
}

func startRegistry(dir string) (*registry, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &registry{host: listener.Addr().String()}
	if err := listener.Close(); err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "registry.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: %q}\n",
		filepath.Join(dir, "registry"), r.host)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	r.process = exec.Command("docker-registry", "serve", config)
	if err := r.process.Start(); err != nil {
		return nil, fmt.Errorf("starting Debian's docker-registry: %w", err)
	}
	if err := r.await(); err != nil {
		r.stop()
		return nil, err
	}
	if err := r.startProxy(); err != nil {
		r.stop()
		return nil, err
	}
	conf := filepath.Join(dir, "registries.conf")
	text = fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n[[registry]]\nlocation = %q\ninsecure = true\n", r.host, r.counted)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return nil, err
	}
	return r, os.Setenv("CONTAINERS_REGISTRIES_CONF", conf)
}

func (r *registry) await() error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		response, err := http.Get("http://" + r.host + "/v2/")
		if err == nil {
			return response.Body.Close()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("docker-registry does not answer: %w", err)
		}
	}
}

func (r *registry) startProxy() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	r.counted = listener.Addr().String()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: r.host})
	r.proxy = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		r.requests.Add(1)
		proxy.ServeHTTP(w, request)
	})}
	go r.proxy.Serve(listener)
	return nil
}

func (r *registry) stop() {
	if r.proxy != nil {
		r.proxy.Close()
	}
	_ = r.process.Process.Kill()
	_ = r.process.Wait() // it was killed
}

func (r *registry) reference(tag string) oci.Reference { return mustParse(r.host + "/bench:" + tag) }

func mustParse(text string) oci.Reference {
	ref, err := oci.ParseReference(text)
	if err != nil {
		panic(err) // our own text
	}
	return ref
}
