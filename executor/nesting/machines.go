package nesting

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"gitlab.com/gitlab-org/fleeting/nesting/hypervisor"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"gitlab-sardine-executor/executor"
	"gitlab-sardine-executor/executor/failure"
	"gitlab-sardine-executor/executor/job"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/executor/serve"
	"gitlab-sardine-executor/vm/record"
)

const (
	// server and project stand in the records of machines for those of a job, which the API
	// does not tell. The names of machines depend on server.
	server  = "nesting"
	project = "nesting"
	// maxName bounds the name of an image, in bytes. References have at most 255 and a digest.
	maxName = 1 << 10
	// maxCreates bounds the machines that are made, or wait for room, at once.
	maxCreates = 64
	// createTimeout bounds Create, as GitLab Runner bounds the prepare stage.
	createTimeout = time.Hour
)

// errEnding: Create has not ended when serve does.
var errEnding = fmt.Errorf("serve is ending: %w", failure.ErrCancelled)

// machines are the machines of clients: a [hypervisor.Hypervisor]. libvirt knows them; here is
// no state of them.
type machines struct {
	serve.Env
	ending context.Context
	making chan struct{}
}

func newMachines(env serve.Env, ending context.Context) *machines {
	return &machines{Env: env, ending: ending, making: make(chan struct{}, maxCreates)}
}

// Init checks the client's nesting_config, which has no keys: the settings of this host
// decide. GitLab Runner sends null if its settings have none.
func (m *machines) Init(_ context.Context, config []byte) error {
	if len(bytes.TrimSpace(config)) == 0 {
		return nil
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(config, &keys); err != nil {
		return status.Errorf(codes.InvalidArgument, "nesting_config: want an object without keys: %s", readable(err.Error()))
	}
	if len(keys) > 0 {
		names := make([]string, 0, len(keys))
		for name := range keys {
			names = append(names, name)
		}
		slices.Sort(names)
		return status.Errorf(codes.InvalidArgument, "nesting_config: unknown keys: %s (the settings file of gitlab-sardine-executor on the host decides)", joblog.List(names))
	}
	return nil
}

// Shutdown leaves the machines.
func (*machines) Shutdown(context.Context) error { return nil }

// driver is the driver of the job that has the machine with that number.
func (m *machines) driver(number, image string) *executor.Driver {
	settings := m.Settings.Get()
	d := &executor.Driver{
		Version: m.Version, Settings: settings, Admin: m.Log,
		Job: job.Job{
			ID: number, Server: server, Project: project, Image: image, Timeout: time.Duration(settings.Serve.NestingTimeout),
		},
		PrepareOnly: true, AuthorizedKeys: settings.Serve.NestingAuthorizedKeys,
	}
	d.Log = joblog.New(&details{log: m.Log.With("machine", d.Job.VMName())})
	return d
}

// Create makes a machine of the image as the prepare stage does, or takes an idle one. The
// error is a gRPC status with the line that the log of a job would get. The machine is removed
// if the client is gone before it is ready.
func (m *machines) Create(ctx context.Context, image string) (hypervisor.VirtualMachine, error) {
	select {
	case m.making <- struct{}{}:
		defer func() { <-m.making }()
	default:
		return nil, status.Errorf(codes.ResourceExhausted, "%d machines are being made or wait for room on this host already", maxCreates)
	}
	if len(image) > maxName {
		return nil, status.Errorf(codes.InvalidArgument, "the name of the image is longer than %d bytes: %s…", maxName, readable(image[:80]))
	}
	ctx, cancel := m.bound(ctx)
	defer cancel()
	began := time.Now()
	d := m.driver(strconv.FormatUint(rand.Uint64N(1<<40)+1, 10), image)
	err := d.Prepare(ctx)
	if err != nil {
		// As GitLab Runner does after a prepare that failed.
		err = errors.Join(err, d.Cleanup(context.WithoutCancel(ctx)))
	}
	m.writeMetrics(d)
	log := m.Log.With("machine", d.Job.VMName(), "image", readable(image))
	if err != nil {
		log.Warn("no machine for a client", "class", failure.Classify(err).String(), "error", joblog.OneLine(err.Error()))
		return nil, statusOf(ctx, err)
	}
	made := d.Machine()
	log.Info("a client has a machine", "address", made.Address, "user", made.User, "seconds", time.Since(began).Seconds())
	return hypervisor.VirtualMachineInfo{Id: made.Name, Name: image, Addr: made.Address}, nil
}

// bound ends a call when its client is gone, when serve ends, and after createTimeout.
func (m *machines) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	bounded, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	gone := context.AfterFunc(ctx, func() { cancel(failure.ErrCancelled) })
	ending := context.AfterFunc(m.ending, func() { cancel(errEnding) })
	limited, stop := context.WithTimeout(bounded, createTimeout)
	return limited, func() {
		gone()
		ending()
		stop()
		cancel(nil)
	}
}

// Delete removes a machine as the cleanup stage does, also if the client is gone meanwhile. A
// machine that does not exist is no error. Machines of other jobs are out of its reach.
func (m *machines) Delete(ctx context.Context, id string) error {
	number, ok := numberOf(id)
	if !ok {
		return status.Errorf(codes.InvalidArgument, "%s is not the id of a machine of this API", readable(id[:min(len(id), 80)]))
	}
	d := m.driver(number, "")
	err := d.Cleanup(context.WithoutCancel(ctx))
	m.writeMetrics(d)
	if err != nil {
		m.Log.Warn("a machine of a client cannot be removed", "machine", id, "error", joblog.OneLine(err.Error()))
		return statusOf(ctx, fmt.Errorf("remove the machine %s: %w", id, err))
	}
	m.Log.Info("a client has removed its machine", "machine", id)
	return nil
}

// numberOf returns the number in the name of a machine of this API.
func numberOf(id string) (number string, ok bool) {
	if !job.IsMachineName(id) {
		return "", false
	}
	number = id[strings.LastIndexByte(id, '-')+1:]
	return number, job.Job{ID: number, Server: server}.VMName() == id
}

// List returns the machines of clients that are ready.
func (m *machines) List(ctx context.Context) ([]hypervisor.VirtualMachine, error) {
	found, err := m.list(ctx)
	if err != nil {
		return nil, statusOf(ctx, fmt.Errorf("list the machines: %w", err))
	}
	var listed []hypervisor.VirtualMachine
	for _, r := range found {
		if isReady(r) {
			listed = append(listed, hypervisor.VirtualMachineInfo{Id: r.MachineName(), Name: r.Record.Image, Addr: r.Record.Address})
		}
	}
	return listed, nil
}

func isReady(m record.InstanceInfo) bool { return m.Record.Address != "" && m.Record.User != "" }

// list lists the machines of clients.
func (m *machines) list(ctx context.Context) ([]record.InstanceInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, executor.LibvirtTimeout)
	defer cancel()
	host, err := executor.OpenHost(ctx, m.Settings.Get())
	if err != nil {
		return nil, err
	}
	defer host.Close()
	all, err := record.List(ctx, host)
	return slices.DeleteFunc(all, func(m record.InstanceInfo) bool { return m.Record.Server != server || m.Record.Idle }), err
}

// adopt removes the machines that an earlier serve did not get ready, and returns the number of
// the others.
func (m *machines) adopt(ctx context.Context) (ready int, err error) {
	found, err := m.list(ctx)
	if err != nil {
		return 0, err
	}
	var failed []error
	for _, r := range found {
		if isReady(r) {
			ready++
			continue
		}
		m.Log.Warn("removing a machine that was not ready when serve ended", "machine", r.MachineName())
		failed = append(failed, m.Delete(ctx, r.MachineName()))
	}
	return ready, errors.Join(failed...)
}

func (m *machines) writeMetrics(d *executor.Driver) {
	if err := d.AddMetrics(m.Metrics); err != nil {
		m.Log.Warn("metrics are incomplete", "error", err)
	}
}

// details writes the lines of a job's log to the administrator's log.
type details struct{ log *slog.Logger }

func (d *details) Write(p []byte) (int, error) {
	for line := range bytes.Lines(p) {
		d.log.Debug("log of prepare", "line", readable(string(bytes.TrimSpace(line))))
	}
	return len(p), nil
}
