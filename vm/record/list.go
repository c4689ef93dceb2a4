package record

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/virt"
)

// InstanceInfo describes the machine of a job.
type InstanceInfo struct {
	Name   string
	Record Record
}

// MachineName is the name by which the stages of the job know the machine.
func (m InstanceInfo) MachineName() string { return cmp.Or(m.Record.Machine, m.Name) }

// List lists the machines of jobs, and those that wait for one. A domain without a record is not a job's, whatever its
// name, and neither is a defined domain with one: an administrator has copied it.
func List(ctx context.Context, h *virt.Host) ([]InstanceInfo, error) {
	domains, err := h.RunningTransient(ctx)
	if err != nil {
		return nil, err
	}
	var machines []InstanceInfo
	for _, dom := range domains {
		m, err := instanceInfo(ctx, dom)
		dom.Free()
		if errors.Is(err, errdefs.ErrNotOurs) || errors.Is(err, errdefs.ErrNoDomain) {
			continue // not a job's, or it has ended since it was listed
		}
		if err != nil {
			return nil, err
		}
		machines = append(machines, m)
	}
	return machines, nil
}

func instanceInfo(ctx context.Context, dom *virt.Domain) (InstanceInfo, error) {
	record, err := Read(ctx, dom)
	if err != nil {
		return InstanceInfo{}, err
	}
	return InstanceInfo{Name: dom.Name(), Record: record}, nil
}

// Keep sets the expiry time of a machine. The error is [errdefs.ErrNoDomain] if it has ended,
// and [errdefs.ErrNotOurs] if it is not a job's.
func Keep(ctx context.Context, h *virt.Host, name string, until time.Time) error {
	dom, err := h.Domain(ctx, name)
	if err != nil {
		return err
	}
	defer dom.Free()
	record, err := Read(ctx, dom)
	if err != nil {
		return fmt.Errorf("domain %s: %w", name, err)
	}
	record.Expires = until.UTC().Truncate(time.Second)
	return record.Store(ctx, dom)
}
