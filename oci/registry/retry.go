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

// A Patience says how long failures of a registry are put up with that may pass:
// it is down, overloaded, or the connection broke.
type Patience struct {
	First, Most time.Duration // between two tries
	Total       time.Duration // from the first failure, or the last byte, to giving up
	Stall       time.Duration // without a byte, after which a connection counts as broken
	// asked is what is left to wait because registries ask for it; nil means
	// maxRetryAfter for each retry.
	asked *allowance
}

// maxRetryAfter is how long one pull waits in all because of Retry-After.
const maxRetryAfter = time.Minute

// PatienceFor is the usual one. A connection that gives no byte for half of the
// time without progress that is allowed may be dead, and gets a successor.
func PatienceFor(stallTimeout time.Duration) Patience {
	stallTimeout = cmp.Or(stallTimeout, distribution.DefaultStallTimeout)
	return Patience{
		First: 500 * time.Millisecond, Most: 15 * time.Second, Total: 2 * time.Minute, Stall: stallTimeout / 2,
		asked: &allowance{left: maxRetryAfter},
	}
}

func (p Patience) OrFor(stallTimeout time.Duration) Patience {
	if p == (Patience{}) {
		return PatienceFor(stallTimeout)
	}
	return p
}

// An allowance is used up bit by bit, by several goroutines.
type allowance struct {
	mu   sync.Mutex
	left time.Duration
}

func (a *allowance) take(d time.Duration) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if d > a.left {
		return false
	}
	a.left -= d
	return true
}

// openPatience is the total for the first contact: a registry that is down then
// is less likely to be back soon, and there may be another pull policy.
const openPatience = 10 * time.Second

// errStalled ends a connection that gives no more bytes.
var errStalled = errors.New("the registry sends nothing any more")

// Retry calls op until it succeeds, fails for good, or patience or ctx ends.
func Retry[T any](ctx context.Context, p Patience, op func() (T, error)) (T, error) {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = p.First, p.Most
	if p.asked == nil {
		p.asked = &allowance{left: maxRetryAfter}
	}
	tries := 0
	result, err := backoff.Retry(ctx, func() (T, error) {
		for {
			tries++
			result, err := op()
			if err == nil {
				return result, nil
			}
			if !mayPass(err) {
				return result, backoff.Permanent(err)
			}
			if after := retryAfter(err); after == 0 {
				return result, err
			} else if err := p.follow(ctx, after, err); err != nil {
				return result, backoff.Permanent(err)
			}
		}
	}, backoff.WithBackOff(wait), backoff.WithMaxElapsedTime(p.Total))
	if err != nil && tries > 1 {
		err = fmt.Errorf("%w (after %d tries)", err, tries)
	}
	return result, err
}

// follow waits as long as a registry asks for, if that is allowed: err otherwise.
func (p Patience) follow(ctx context.Context, after time.Duration, err error) error {
	if !p.asked.take(after) {
		return fmt.Errorf("%w (asks to wait %v, by Retry-After; one pull waits %v in all)", err, after, maxRetryAfter)
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

// mayPass reports whether a failure of a registry is worth another try.
func mayPass(err error) bool {
	var stalled *distribution.StallError
	if oci.Final(err) || errors.As(err, &stalled) {
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

// Opening is p for the first contact.
func (p Patience) Opening() Patience {
	p.Total = min(p.Total, openPatience)
	return p
}
