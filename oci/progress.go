package oci

// Progress hears how a pull, a push or an export goes on. Its methods are called
// from several goroutines at once.
type Progress interface {
	// Waiting is called when the work stands still for another process; reason is
	// a sentence for people.
	Waiting(reason string)
	// Start is called when a transfer of size bytes begins; -1 if unknown. name is
	// for people.
	Start(name string, size int64) Transfer
}

// A Transfer is one layer under way.
type Transfer interface {
	// Add counts n more bytes.
	Add(n int64)
	// Done is called once, with the error that ended the transfer or nil.
	Done(err error)
}

// An Estimator is a [Progress] that can say how much time is left, for it wants to
// know how much is to come.
type Estimator interface {
	// Expect is called with the number of bytes that further transfers will move.
	// Those that have begun count toward it.
	Expect(size int64)
}

// Expect tells p how much is to come, if p wants to know.
func Expect(p Progress, size int64) {
	if e, ok := p.(Estimator); ok {
		e.Expect(size)
	}
}

// silent is the Progress of those who did not ask for one.
type silent struct{}

func (silent) Waiting(string)               {}
func (silent) Start(string, int64) Transfer { return silent{} }
func (silent) Add(int64)                    {}
func (silent) Done(error)                   {}

func ProgressOrSilent(p Progress) Progress {
	if p == nil {
		return silent{}
	}
	return p
}
