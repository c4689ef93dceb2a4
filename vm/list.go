package vm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"libvirt.org/go/libvirt"
)

// A Machine is a domain that carries a job's record.
type Machine struct {
	Name   string
	Record Record
}

// Machines lists the machines of jobs; other domains are not among them, whatever
// their names. What libvirt keeps a definition of is no job's: it is somebody's copy.
func Machines(ctx context.Context, h *Host) ([]Machine, error) {
	domains, err := await(ctx, "list the domains", func() ([]libvirt.Domain, error) {
		return h.conn.ListAllDomains(libvirt.CONNECT_LIST_DOMAINS_ACTIVE | libvirt.CONNECT_LIST_DOMAINS_TRANSIENT)
	})
	if err != nil {
		return nil, err
	}
	var machines []Machine
	for i := range domains {
		dom := &domains[i]
		m, err := machineOf(ctx, dom)
		dom.Free()
		if errors.Is(err, ErrNotOurs) || isCode(err, libvirt.ERR_NO_DOMAIN) {
			continue // somebody else's, or gone since it was listed
		}
		if err != nil {
			return nil, err
		}
		machines = append(machines, m)
	}
	return machines, nil
}

func machineOf(ctx context.Context, dom *libvirt.Domain) (Machine, error) {
	record, err := readRecord(ctx, dom)
	if err != nil {
		return Machine{}, err
	}
	name, err := dom.GetName()
	return Machine{Name: name, Record: record}, err
}

// Keep lets a machine live until then. The error is [ErrNoDomain] if it has ended
// and [ErrNotOurs] if it is not a job's.
func Keep(ctx context.Context, h *Host, name string, until time.Time) error {
	dom, err := h.domain(ctx, name)
	if err != nil {
		return err
	}
	defer dom.Free()
	record, err := readRecord(ctx, dom)
	if err != nil {
		return fmt.Errorf("domain %s: %w", name, err)
	}
	record.Expires = until.UTC().Truncate(time.Second)
	return record.store(ctx, dom)
}
