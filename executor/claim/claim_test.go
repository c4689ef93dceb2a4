package claim

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/idle"
)

func fingerprint(t *testing.T, k Kind) string {
	t.Helper()
	text, err := k.Fingerprint()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// change sets a field to another value than the zero value.
func change(t *testing.T, field reflect.Value) {
	t.Helper()
	switch field.Kind() {
	case reflect.String:
		field.SetString("x")
	case reflect.Bool:
		field.SetBool(true)
	case reflect.Int, reflect.Int64:
		field.SetInt(7)
	case reflect.Uint, reflect.Uint64:
		field.SetUint(7)
	case reflect.Slice:
		field.Set(reflect.MakeSlice(field.Type(), 1, 1))
	default:
		t.Fatalf("a field of kind %s", field.Kind())
	}
}

// Every setting decides how a machine is made, but those that are known not to: a new
// setting is on the safe side.
func TestEverySettingCounts(t *testing.T) {
	later := []string{"Image", "PullPolicies", "AllowedPullPolicies", "PrepareScript", "KeepOnFailure"}
	plain := fingerprint(t, Kind{})
	settings := reflect.TypeFor[config.Resolved]()
	for i := range settings.NumField() {
		field := settings.Field(i)
		if !field.IsExported() {
			continue // they decide the login, which counts
		}
		var k Kind
		change(t, reflect.ValueOf(&k.Settings).Elem().Field(i))
		if same := fingerprint(t, k) == plain; same != slices.Contains(later, field.Name) {
			t.Errorf("%s: the same kind: %t", field.Name, same)
		}
	}
	for name, k := range map[string]Kind{
		"version": {Version: "2"}, "connect": {Connect: "qemu:///session"}, "image": {Image: "sha256-1.2"}, "reference": {Reference: "x"},
		"tools": {Tools: "/tools/1.iso"}, "user": {Login: guestssh.Login{User: "ci"}}, "password": {Login: guestssh.Login{Password: "x"}},
	} {
		if fingerprint(t, k) == plain {
			t.Errorf("%s does not count", name)
		}
	}
	withKey := Kind{Login: guestssh.Login{Key: make([]byte, 64)}}
	if fingerprint(t, withKey) != plain {
		t.Error("the key of one machine counts")
	}
}

func TestReady(t *testing.T) {
	jobs := t.TempDir()
	if found, err := Ready(jobs, "a"); err != nil || len(found) != 0 {
		t.Errorf("without serve: %v, %v", found, err)
	}
	if err := idle.Touch(jobs); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, kind := range []string{"a", "b", "a", ""} {
		name := idle.NewName()
		err := os.Mkdir(filepath.Join(jobs, name), 0o700)
		if kind != "" { // else its state is damaged
			err = errors.Join(err, idle.State{Kind: kind, Made: time.Now()}.Save(jobs, name))
		}
		if err := errors.Join(err, idle.Offer(jobs, name)); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	found, err := Ready(jobs, "a")
	if err != nil || len(found) != 2 || found[0].Domain != names[0] || found[1].Domain != names[2] {
		t.Errorf("%v, %v; want the first and third of %q", found, err, names)
	}
	if all, err := Ready(jobs, ""); err != nil || len(all) != 3 {
		t.Errorf("of all kinds: %v, %v", all, err)
	}
}
