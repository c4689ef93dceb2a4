package nesting

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/net/netutil"
)

const (
	// maxClients bounds the connections of clients. GitLab Runner has one for each job.
	maxClients = 256
	// acceptPause follows a failure to accept, such as too many open files.
	acceptPause = 100 * time.Millisecond
)

// forward connects clients with the module's server until the listener is closed, and returns
// when all connections have ended.
func (p *private) forward(listener net.Listener, log *slog.Logger) {
	var clients sync.WaitGroup
	defer clients.Wait()
	for limited := netutil.LimitListener(listener, maxClients); ; {
		client, err := limited.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			log.Warn("a client of the nesting API cannot connect", "error", err)
			time.Sleep(acceptPause)
			continue
		}
		clients.Go(func() {
			defer client.Close()
			server, err := p.dial()
			if err != nil {
				return // it is ending
			}
			defer server.Close()
			join(client, server)
		})
	}
}

// join copies in both directions until one side closes its connection.
func join(a, b net.Conn) {
	ended := make(chan struct{}, 2)
	copyTo := func(to, from net.Conn) {
		_, _ = io.Copy(to, from)
		ended <- struct{}{}
	}
	go copyTo(a, b)
	go copyTo(b, a)
	<-ended
	a.Close()
	b.Close()
	<-ended
}
