package nesting

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"gitlab.com/gitlab-org/fleeting/nesting/api"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"gitlab-sardine-executor/internal/rpc"
)

// fake has machines in memory. It makes none of the image "broken", and keeps "kept-1".
type fake struct {
	mu   sync.Mutex
	made int
	all  map[string]machine
}

func (*fake) Init([]byte) error { return nil }

func (f *fake) Create(_ context.Context, image string) (machine, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if image == "broken" {
		return machine{}, rpc.Errorf(rpc.NotFound, "broken")
	}
	f.made++
	m := machine{fmt.Sprintf("%s-%d", image, f.made), image, "127.0.0.1:22"}
	f.all[m.id] = m
	return m, nil
}

func (f *fake) Delete(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if strings.HasPrefix(id, "kept-") {
		return rpc.Errorf(rpc.Unavailable, "kept")
	}
	delete(f.all, id)
	return nil
}

func (f *fake) List(context.Context) ([]machine, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Values(f.all)), nil
}

// A slot has one machine: Create in the same slot removes the one before, and Delete frees it.
func TestSlots(t *testing.T) {
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	hypervisor := &fake{all: map[string]machine{}}
	s := &service{hypervisor: hypervisor, slots: map[int32]string{}}
	server := &rpc.Server{Methods: s.methods()}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, listener) }()
	client := (&fixture{socket: listener.Addr().String()}).initialized(t)
	for _, step := range []struct {
		image    string
		slot     int32 // -1: none
		replaced string
		code     codes.Code
		left     string
	}{
		{"a", 0, "", codes.OK, "a-1"},
		{"b", 7, "", codes.OK, "a-1 b-2"},
		{"c", 0, "a-1", codes.OK, "b-2 c-3"},
		{"d", -1, "", codes.OK, "b-2 c-3 d-4"},
		{"broken", 7, "", codes.NotFound, "c-3 d-4"},
		{"e", 7, "", codes.OK, "c-3 d-4 e-5"},
		{"kept", 1<<31 - 1, "", codes.OK, "c-3 d-4 e-5 kept-6"},
		{"f", 1<<31 - 1, "", codes.Unavailable, "c-3 d-4 e-5 kept-6"},
	} {
		var slot *int32
		if step.slot >= 0 {
			slot = &step.slot
		}
		vm, replaced, err := client.Create(t.Context(), step.image, slot)
		if status.Code(err) != step.code || (replaced != nil) != (step.replaced != "") || replaced != nil && *replaced != step.replaced {
			t.Errorf("Create %s: %v, %v, %v", step.image, vm, replaced, err)
		}
		if err == nil && (vm.GetName() != step.image || vm.GetAddr() != "127.0.0.1:22") {
			t.Errorf("Create %s: %v", step.image, vm)
		}
		if left := ids(t, client); left != step.left {
			t.Errorf("after Create %s: %s; want %s", step.image, left, step.left)
		}
	}
	if err := client.Delete(t.Context(), "e-5"); err != nil {
		t.Error(err)
	}
	if _, replaced, err := client.Create(t.Context(), "g", new(int32(7))); replaced != nil || err != nil {
		t.Errorf("Create in a slot that is free: %v, %v", replaced, err)
	}
	if err := errors.Join(client.Shutdown(t.Context()), client.Delete(t.Context(), "c-3")); !errors.Is(err, api.ErrNotInitialized) {
		t.Errorf("Delete after Shutdown: %v", err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func ids(t *testing.T, client api.Client) string {
	t.Helper()
	vms, err := client.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, vm := range vms {
		all = append(all, vm.GetId())
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// message makes a message of GitLab's protocol. Its Go type is internal to GitLab's module, which
// registers it.
func message(t testing.TB, name protoreflect.FullName) protoreflect.Message {
	t.Helper()
	kind, err := protoregistry.GlobalTypes.FindMessageByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return kind.New()
}

func fieldOf(m protoreflect.Message, name protoreflect.Name) protoreflect.FieldDescriptor {
	return m.Descriptor().Fields().ByName(name)
}

// Requests are decoded as GitLab's types decode them.
func FuzzRequests(f *testing.F) {
	request := message(f, "nesting.CreateRequest")
	request.Set(fieldOf(request, "name"), protoreflect.ValueOfString("registry.example.com/a:1"))
	for _, slot := range []int32{0, 1, -1, 1<<31 - 1} {
		encoded, err := proto.Marshal(request.Interface())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(encoded)
		request.Set(fieldOf(request, "slot"), protoreflect.ValueOfInt32(slot))
	}
	for _, seed := range []string{"", "\x0a\x01a\x0a\x01b", "\x08\x01", "\x12\x01a", "\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "\x0a\x02\xff\xff", "\x0a\x7f", "\x0b\x10\x01\x0c", "\x0b", "\x1d\x01\x02\x03\x04\x10\x05", "\x00\x00"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, encoded []byte) {
		create := message(t, "nesting.CreateRequest")
		want := proto.Unmarshal(encoded, create.Interface())
		image, slot, err := decodeCreate(encoded)
		if (err == nil) != (want == nil) {
			t.Fatalf("CreateRequest: got %v; want %v", err, want)
		}
		if err == nil {
			name, at := fieldOf(create, "name"), fieldOf(create, "slot")
			if image != create.Get(name).String() || (slot != nil) != create.Has(at) || slot != nil && int64(*slot) != create.Get(at).Int() {
				t.Errorf("CreateRequest: got %q, %v; want %v", image, slot, create)
			}
		}

		remove := message(t, "nesting.DeleteRequest")
		want = proto.Unmarshal(encoded, remove.Interface())
		if id, err := decodeDelete(encoded); (err == nil) != (want == nil) || err == nil && id != remove.Get(fieldOf(remove, "id")).String() {
			t.Errorf("DeleteRequest: got %q, %v; want %v, %v", id, err, remove, want)
		}

		initialize := message(t, "nesting.InitRequest")
		want = proto.Unmarshal(encoded, initialize.Interface())
		if config, err := decodeInit(encoded); (err == nil) != (want == nil) || err == nil && string(config) != string(initialize.Get(fieldOf(initialize, "config")).Bytes()) {
			t.Errorf("InitRequest: got %q, %v; want %v, %v", config, err, initialize, want)
		}
	})
}
