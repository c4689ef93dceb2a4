package oci

// Progress receives the progress of a pull, a push or an export. Its methods are called
// concurrently.
type Progress interface {
	// Waiting is called when the operation waits for another process; reason is a sentence
	// for people.
	Waiting(reason string)
	// Start is called when a transfer of size bytes begins; -1 if unknown. name is
	// for people.
	Start(name string, size int64) Transfer
}

// A Transfer is one layer in progress.
type Transfer interface {
	// Add counts n more bytes.
	Add(n int64)
	// Done is called once, with the error that ended the transfer or nil.
	Done(err error)
}

// An Estimator is a [Progress] that estimates the time left.
type Estimator interface {
	// Expect is called with the total number of bytes of all transfers.
	Expect(size int64)
}

// Expect tells p the total number of bytes, if p is an [Estimator].
func Expect(p Progress, size int64) {
	if e, ok := p.(Estimator); ok {
		e.Expect(size)
	}
}

// discard ignores progress.
type discard struct{}

func (discard) Waiting(string)               {}
func (discard) Start(string, int64) Transfer { return discard{} }
func (discard) Add(int64)                    {}
func (discard) Done(error)                   {}

func ProgressOrDiscard(p Progress) Progress {
	if p == nil {
		return discard{}
	}
	return p
}
