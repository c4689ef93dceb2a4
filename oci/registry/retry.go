package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/registry/distribution"
)

// A RetryPolicy says how to retry after transient failures of a registry: it is down or
// overloaded, or the connection broke.
type RetryPolicy struct {
	InitialDelay, MaxDelay time.Duration // between two tries; it doubles
	Timeout                time.Duration // from the first failure, or the last byte received, to the last try
	StallTimeout           time.Duration // time without a byte after which a connection counts as broken
	// retryAfter is the time left for waits that registries request; nil means
	// maxRetryAfter for each call of Retry.
	retryAfter *budget
}

// maxRetryAfter is the maximum total wait of one pull for Retry-After headers.
const maxRetryAfter = time.Minute

// DefaultRetries is the policy for a stall timeout; 0 means the default. A connection without
// a byte for half of this time may be dead, and is replaced.
func DefaultRetries(stallTimeout time.Duration) RetryPolicy {
	stallTimeout = cmp.Or(stallTimeout, distribution.DefaultStallTimeout)
	return RetryPolicy{
		InitialDelay: 500 * time.Millisecond, MaxDelay: 15 * time.Second, Timeout: 2 * time.Minute, StallTimeout: stallTimeout / 2,
		retryAfter: &budget{left: maxRetryAfter},
	}
}

// OrDefault returns p, or the default policy for the zero value.
func (p RetryPolicy) OrDefault(stallTimeout time.Duration) RetryPolicy {
	if p == (RetryPolicy{}) {
		return DefaultRetries(stallTimeout)
	}
	return p
}

// A budget is an amount of time that several goroutines spend.
type budget struct {
	mu   sync.Mutex
	left time.Duration
}

func (a *budget) take(d time.Duration) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if d > a.left {
		return false
	}
	a.left -= d
	return true
}

// firstContactTimeout limits retries of the first request: a registry that is down then may
// stay down, and there may be another pull policy.
const firstContactTimeout = 10 * time.Second

// errStalled: no bytes arrive.
var errStalled = errors.New("the registry stopped sending")

// Retry calls op until it succeeds or fails permanently, or until the policy or ctx ends.
func Retry[T any](ctx context.Context, p RetryPolicy, op func() (T, error)) (T, error) {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = p.InitialDelay, p.MaxDelay
	if p.retryAfter == nil {
		p.retryAfter = &budget{left: maxRetryAfter}
	}
	tries := 0
	result, err := backoff.Retry(ctx, func() (T, error) {
		for {
			tries++
			result, err := op()
			if err == nil {
				return result, nil
			}
			if !isTransient(err) {
				return result, backoff.Permanent(err)
			}
			if after := retryAfter(err); after == 0 {
				return result, err
			} else if err := p.wait(ctx, after, err); err != nil {
				return result, backoff.Permanent(err)
			}
		}
	}, backoff.WithBackOff(wait), backoff.WithMaxElapsedTime(p.Timeout))
	if err != nil && tries > 1 {
		err = fmt.Errorf("%w (after %d tries)", err, tries)
	}
	return result, err
}

// wait waits as a registry requests. It returns err if the wait is longer than allowed.
func (p RetryPolicy) wait(ctx context.Context, after time.Duration, err error) error {
	if !p.retryAfter.take(after) {
		return fmt.Errorf("%w (its Retry-After is %v; the limit for one pull is %v in total)", err, after, maxRetryAfter)
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(after):
		return nil
	}
}

func retryAfter(err error) time.Duration {
	var answer *distribution.StatusError
	if errors.As(err, &answer) {
		return answer.RetryAfter
	}
	return 0
}

// isTransient reports whether to retry after a failure of a registry.
func isTransient(err error) bool {
	var stalled *distribution.StallError
	if oci.IsPermanent(err) || errors.As(err, &stalled) {
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

// FirstContact returns p with a shorter timeout, for the first request.
func (p RetryPolicy) FirstContact() RetryPolicy {
	p.Timeout = min(p.Timeout, firstContactTimeout)
	return p
}
