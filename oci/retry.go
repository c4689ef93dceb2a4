package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// A patience says how long failures of a registry are put up with that may pass:
// it is down, overloaded, or the connection broke.
type patience struct {
	first, most time.Duration // between two tries
	total       time.Duration // from the first failure, or the last byte, to giving up
	stall       time.Duration // without a byte, after which a connection counts as broken
}

var defaultPatience = patience{first: 500 * time.Millisecond, most: 15 * time.Second, total: 2 * time.Minute, stall: 30 * time.Second}

// openPatience is the total for the first contact: a registry that is down then
// is less likely to be back soon, and there may be another pull policy.
const openPatience = 10 * time.Second

// errStalled ends a connection that gives no more bytes.
var errStalled = errors.New("the registry sends nothing any more")

// retry calls op until it succeeds, fails for good, or patience or ctx ends.
func retry[T any](ctx context.Context, p patience, op func() (T, error)) (T, error) {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = p.first, p.most
	tries := 0
	result, err := backoff.Retry(ctx, func() (T, error) {
		tries++
		result, err := op()
		if err != nil && !mayPass(err) {
			err = backoff.Permanent(err)
		}
		return result, err
	}, backoff.WithBackOff(wait), backoff.WithMaxElapsedTime(p.total))
	if err != nil && tries > 1 {
		err = fmt.Errorf("%w (after %d tries)", err, tries)
	}
	return result, err
}

// mayPass reports whether a failure of a registry is worth another try.
func mayPass(err error) bool {
	if Final(err) {
		return false
	}
	switch status := httpStatus(err); {
	case status == http.StatusTooManyRequests, status == http.StatusRequestTimeout, status >= 500:
		return true
	case status != 0:
		return false
	}
	for _, passing := range []error{
		errStalled, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.ECONNREFUSED, syscall.ECONNABORTED, syscall.EPIPE, syscall.ETIMEDOUT,
	} {
		if errors.Is(err, passing) {
			return true
		}
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return dns.IsTemporary || dns.IsTimeout
	}
	var network net.Error
	return errors.As(err, &network) && network.Timeout() && !errors.Is(err, context.DeadlineExceeded)
}
