package nesting

import (
	"context"
	"fmt"
	"sync"

	"gitlab-sardine-executor/internal/rpc"
)

// Clients know these by their code and text: they are those of GitLab's server.
var (
	errInitialized    = rpc.Errorf(rpc.FailedPrecondition, "already initialized")
	errNotInitialized = rpc.Errorf(rpc.FailedPrecondition, "not initialized")
)

// A hypervisor makes machines.
type hypervisor interface {
	Init(config []byte) error
	Create(ctx context.Context, image string) (machine, error)
	Delete(ctx context.Context, id string) error
	List(ctx context.Context) ([]machine, error)
}

// A service is nesting.Nesting of the protocol. Its state is that of a process: whether a client
// has initialized it, and which machines have slots.
type service struct {
	hypervisor

	mu          sync.Mutex
	initialized bool
	slots       map[int32]string // the id of the machine
}

// methods are those of the protocol.
func (s *service) methods() map[string]rpc.Method {
	return map[string]rpc.Method{
		"/nesting.Nesting/Init":     s.init,
		"/nesting.Nesting/Shutdown": s.shutdown,
		"/nesting.Nesting/Create":   s.whenInitialized(s.create),
		"/nesting.Nesting/Delete":   s.whenInitialized(s.delete),
		"/nesting.Nesting/List":     s.whenInitialized(s.list),
	}
}

func (s *service) whenInitialized(do rpc.Method) rpc.Method {
	return func(ctx context.Context, request []byte) ([]byte, error) {
		s.mu.Lock()
		initialized := s.initialized
		s.mu.Unlock()
		if !initialized {
			return nil, errNotInitialized
		}
		return do(ctx, request)
	}
}

func (s *service) init(_ context.Context, request []byte) ([]byte, error) {
	config, err := decodeInit(request)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.initialized {
		return nil, errInitialized
	}
	err = s.Init(config)
	s.initialized = err == nil
	return nil, err
}

// shutdown leaves the machines.
func (s *service) shutdown(context.Context, []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.initialized {
		return nil, errNotInitialized
	}
	s.initialized = false
	return nil, nil
}

// create makes a machine. That of the same slot is removed before.
func (s *service) create(ctx context.Context, request []byte) ([]byte, error) {
	image, slot, err := decodeCreate(request)
	if err != nil {
		return nil, err
	}
	var replaced *string
	if slot != nil {
		if replaced, err = s.clear(ctx, *slot); err != nil {
			return nil, err
		}
	}
	made, err := s.Create(ctx, image)
	if err != nil {
		return nil, err
	}
	if slot != nil {
		s.mu.Lock()
		s.slots[*slot] = made.id
		s.mu.Unlock()
	}
	return encodeCreate(made, replaced), nil
}

// clear removes the machine of a slot and returns its id, or nil if there is none.
func (s *service) clear(ctx context.Context, slot int32) (*string, error) {
	s.mu.Lock()
	id, ok := s.slots[slot]
	s.mu.Unlock()
	if !ok {
		return nil, nil
	}
	if err := s.remove(ctx, id); err != nil {
		return nil, fmt.Errorf("clear the slot %d: %w", slot, err)
	}
	return &id, nil
}

func (s *service) delete(ctx context.Context, request []byte) ([]byte, error) {
	id, err := decodeDelete(request)
	if err != nil {
		return nil, err
	}
	return nil, s.remove(ctx, id)
}

// remove removes a machine, from its slot too.
func (s *service) remove(ctx context.Context, id string) error {
	if err := s.Delete(ctx, id); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for slot, has := range s.slots {
		if has == id {
			delete(s.slots, slot)
		}
	}
	return nil
}

func (s *service) list(ctx context.Context, _ []byte) ([]byte, error) {
	all, err := s.List(ctx)
	return encodeList(all), err
}
