// Package status describes what the driver does on this host at this moment.
package status

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"gitlab-sardine-executor/executor"
	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/oci/space"
	"gitlab-sardine-executor/oci/store"
	"gitlab-sardine-executor/vm/admission"
	"gitlab-sardine-executor/vm/idle"
	"gitlab-sardine-executor/vm/record"
)

// A Status is what status --json prints; docs/status.md describes the fields. It contains
// neither variables nor logins of jobs.
type Status struct {
	Time time.Time `json:"time"`
	// Machines of jobs, the oldest first; nil if libvirt did not answer.
	Machines []Machine `json:"machines"`
	Waiting  Waiting   `json:"waiting"`
	Pulls    []Pull    `json:"pulls"`
	Images   []Image   `json:"images"`
	Room     Room      `json:"room"`
	// Failures of stages, the latest first; at most maxFailures. nil without log_file.
	Failures []Failure `json:"failures"`
	// Problems are why a part is missing.
	Problems []string `json:"problems"`
}

// States of machines.
const (
	// starting: admitted, or booting.
	starting = "starting"
	// Ready: the guest has accepted the login.
	Ready = "ready"
	// waiting: ready, and waiting for a job.
	waiting = "idle"
)

// A Machine is the machine of a job.
type Machine struct {
	Name  string `json:"name"`
	State string `json:"state"`
	// Job, Project and Image are empty until libvirt knows the machine.
	Job     string        `json:"job,omitempty"`
	Project string        `json:"project,omitempty"`
	Image   string        `json:"image,omitempty"`
	Digest  digest.Digest `json:"digest,omitempty"`
	// Memory is in bytes.
	Memory uint64 `json:"memory"`
	// Created is when prepare began. From Expires on, sweep may remove the machine.
	Created time.Time `json:"created,omitzero"`
	Expires time.Time `json:"expires,omitzero"`
}

// Waiting are the machines that wait for room on the host.
type Waiting struct {
	// First is the name of the machine that gets the next room; empty if none waits.
	First string `json:"first,omitempty"`
	// Count is the number of waiting machines.
	Count int `json:"count"`
}

// A Pull is a pull under way. Sizes are in bytes.
type Pull struct {
	Digest digest.Digest `json:"digest"`
	// Source is the registry.
	Source   string `json:"source,omitempty"`
	Received int64  `json:"received"`
	// Total is 0 while it is not known.
	Total int64 `json:"total"`
	// Since is when unpacking began.
	Since time.Time `json:"since,omitzero"`
	// Usage is the space taken so far, of Needed.
	Usage  int64 `json:"usage"`
	Needed int64 `json:"needed"`
}

// An Image is an image in the store, or an interrupted pull.
type Image struct {
	Digest     digest.Digest `json:"digest"`
	References []string      `json:"references"`
	Complete   bool          `json:"complete"`
	// Size is the disk usage in bytes.
	Size     int64     `json:"size"`
	LastUsed time.Time `json:"lastUsed"`
	// Machines is the number of machines of jobs on top of the image.
	Machines int `json:"machines"`
}

// Room is what the host has left. Sizes are in bytes.
type Room struct {
	// Slots is the setting; 0 means no limit. SlotsUsed counts running and starting
	// machines.
	Slots     uint `json:"slots"`
	SlotsUsed int  `json:"slotsUsed"`
	// Memory of the host, of all running domains and starting machines, and what the
	// setting host_reserve keeps free; a negative reserve means that memory is not counted.
	Memory        uint64 `json:"memory"`
	MemoryUsed    uint64 `json:"memoryUsed"`
	MemoryReserve int64  `json:"memoryReserve"`
	// DiskDir is the directory of the images; Disk is the size of its file system, DiskFree
	// what is free, and DiskReserve what the setting storage_reserve keeps free.
	DiskDir     string `json:"diskDir"`
	Disk        int64  `json:"disk"`
	DiskFree    int64  `json:"diskFree"`
	DiskReserve int64  `json:"diskReserve"`
}

// Collect describes the host. It starts and removes nothing. What cannot be found out is missing, and
// Problems says why.
func Collect(ctx context.Context, settings *config.Settings) (*Status, error) {
	dirs, err := settings.Dirs()
	if err != nil {
		return nil, err
	}
	s := &Status{Time: time.Now(), Pulls: []Pull{}, Images: []Image{}, Problems: []string{}}
	queue, err := admission.Look(dirs.Jobs)
	s.problem("the queue for room", err)
	s.setWaiting(queue)
	s.problem("machines", s.addMachines(ctx, settings, queue))
	s.problem("images", s.addImages(ctx, dirs))
	s.problem("free space", s.addDisk(settings, dirs))
	s.problem("failures", s.addFailures(settings.Defaults.LogFile))
	return s, ctx.Err()
}

func (s *Status) problem(part string, err error) {
	if err != nil {
		s.Problems = append(s.Problems, fmt.Sprintf("%s: %v", part, err))
	}
}

func (s *Status) setWaiting(queue admission.State) {
	if queue.First != "" {
		s.Waiting = Waiting{First: queue.First, Count: 1 + queue.Behind}
	}
}

// addMachines adds machines, and the slots and memory that they take.
func (s *Status) addMachines(ctx context.Context, settings *config.Settings, queue admission.State) error {
	s.Room.Slots, s.Room.MemoryReserve = settings.Defaults.Slots, int64(settings.Defaults.HostReserve)
	ctx, cancel := context.WithTimeout(ctx, executor.LibvirtTimeout)
	defer cancel()
	host, err := executor.OpenHost(ctx, settings)
	if err != nil {
		return err
	}
	defer host.Close()
	size, err := host.Size(ctx)
	if err != nil {
		return err
	}
	machines, err := record.List(ctx, host)
	if err != nil {
		return err
	}
	memories, err := host.Memories(ctx)
	if err != nil {
		return err
	}
	s.Room.Memory = size.Memory
	for _, memory := range memories {
		s.Room.MemoryUsed += memory
	}
	s.Machines = []Machine{}
	listed := make(map[string]bool)
	for _, m := range machines {
		s.Machines = append(s.Machines, newMachine(m, memories[m.Name]))
		listed[m.MachineName()] = true
		if !m.Record.Idle {
			s.Room.SlotsUsed++
		}
	}
	for name, memory := range queue.Starting {
		if _, running := memories[name]; running || listed[name] {
			continue
		}
		s.Machines = append(s.Machines, Machine{Name: name, State: starting, Memory: memory})
		s.Room.MemoryUsed += memory
		if !idle.IsName(name) {
			s.Room.SlotsUsed++
		}
	}
	slices.SortStableFunc(s.Machines, byAge)
	return nil
}

// byAge sorts the oldest first; machines without a time are about to start.
func byAge(a, b Machine) int {
	switch {
	case a.Created.IsZero() != b.Created.IsZero() && a.Created.IsZero():
		return 1
	case a.Created.IsZero() != b.Created.IsZero():
		return -1
	}
	return a.Created.Compare(b.Created)
}

func newMachine(m record.InstanceInfo, memory uint64) Machine {
	state := starting
	switch {
	case m.Record.Address == "":
	case m.Record.Idle:
		state = waiting
	default:
		state = Ready
	}
	return Machine{
		Name: m.MachineName(), State: state, Job: m.Record.Job, Project: m.Record.Project, Image: m.Record.Image,
		Digest: digest.Digest(m.Record.Digest), Memory: memory, Created: m.Record.Created, Expires: m.Record.Expires,
	}
}

// addImages adds images and pulls.
func (s *Status) addImages(ctx context.Context, dirs config.Dirs) error {
	local, err := store.Open(dirs.Store)
	if err != nil {
		return err
	}
	stored, err := local.Inventory(ctx)
	pulls, pullsErr := local.Ongoing()
	used := make(map[digest.Digest]int)
	for _, m := range s.Machines {
		used[m.Digest]++
	}
	for _, image := range stored {
		s.Images = append(s.Images, Image{
			Digest: image.Digest, References: append([]string{}, image.References...), Complete: image.Image != nil,
			Size: image.Usage, LastUsed: image.LastUsed, Machines: used[image.Digest],
		})
	}
	for _, p := range pulls {
		s.Pulls = append(s.Pulls, Pull(p))
	}
	return errors.Join(err, pullsErr)
}

func (s *Status) addDisk(settings *config.Settings, dirs config.Dirs) error {
	s.Room.DiskDir = dirs.Store
	room, err := space.Of(dirs.Store)
	if err != nil {
		return err
	}
	s.Room.Disk, s.Room.DiskFree = room.Total, room.Free
	s.Room.DiskReserve = space.Reserve(settings.Defaults.StorageReserve).Of(room.Total)
	return nil
}
