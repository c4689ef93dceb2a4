package format

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
)

// TestFingerprintStays: an image that was pulled is found again by a newer driver. A change
// of these values makes every host pull its images once more.
func TestFingerprintStays(t *testing.T) {
	want := map[string]string{
		"single":     "871d0482c2c9a18686579f4556a3fdf3",
		"chain":      "1c81e1703ce177665b99f753512d7e9f",
		"chunked":    "7db081ea5ad64be09ccc30fed59093f9",
		"twodisk":    "84777cb2313cc3157cf42a9670743042",
		"novmconfig": "c7430bc2f980a1e8050711d7b726cf31",
	}
	for fixture, fingerprint := range want {
		if got := fixturePlan(t, fixture).Fingerprint(); got != fingerprint {
			t.Errorf("%s: %s, want %s", fixture, got, fingerprint)
		}
	}
}

// fixturePlan plans the last image of a fixture's layout.
func fixturePlan(t *testing.T, fixture string) *Plan {
	t.Helper()
	layout := filepath.Join("..", "testdata", "sardinecake", fixture, "oci")
	blob := func(d digest.Digest) []byte {
		raw, err := os.ReadFile(filepath.Join(layout, "blobs", d.Algorithm().String(), d.Encoded()))
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	raw, err := os.ReadFile(filepath.Join(layout, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var index v1.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		t.Fatal(err)
	}
	doc, err := Parse(blob(index.Manifests[len(index.Manifests)-1].Digest))
	if err != nil {
		t.Fatal(err)
	}
	plan, err := DetectPlan(doc.Manifest, blob(doc.Manifest.Config.Digest))
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// TestFingerprintCoversThePlan changes each field of a plan in turn: every one decides what
// the disks are, but for those that are named here.
func TestFingerprintCoversThePlan(t *testing.T) {
	plan := func() *Plan {
		stream := func() Stream {
			return Stream{Blobs: []v1.Descriptor{{Digest: digest.FromString("a")}}, Compression: Gzip, Offset: 1, Size: 2, Digest: "x"}
		}
		return &Plan{
			Format: "f", Architecture: "a", OS: "o", DomainXML: &v1.Descriptor{Digest: "d"}, GuestConfig: &v1.Descriptor{Digest: "g"},
			Disks: []Disk{{
				Name: "n", Alias: "l", Content: Raw, Streams: []Stream{stream()}, Digest: "y", Size: 3,
				ContainerDisk: &ContainerDisk{Path: "p", Layers: []Stream{stream()}},
			}},
		}
	}
	// Created is for people. Of a blob, the digest counts: all else is how it is carried.
	free := map[string]bool{"Plan.Created": true, "Descriptor": true}
	before := plan().Fingerprint()
	if plan().Fingerprint() != before {
		t.Fatal("the fingerprint of one plan changes")
	}
	var changes int
	var visit func(root *Plan, v reflect.Value, path string)
	visit = func(root *Plan, v reflect.Value, path string) {
		switch v.Kind() {
		case reflect.Pointer:
			visit(root, v.Elem(), path)
		case reflect.Slice:
			for i := range v.Len() {
				visit(root, v.Index(i), path)
			}
			old := reflect.ValueOf(v.Interface())
			v.Set(reflect.Append(v, v.Index(0)))
			check(t, root, before, path+" one more")
			v.Set(old)
			changes++
		case reflect.Struct:
			for i := range v.NumField() {
				name := v.Type().Name() + "." + v.Type().Field(i).Name
				if free[name] || free[v.Type().Name()] && v.Type().Field(i).Name != "Digest" {
					continue
				}
				visit(root, v.Field(i), path+" "+name)
			}
		case reflect.String:
			old := v.String()
			v.SetString(old + "z")
			check(t, root, before, path)
			v.SetString(old)
			changes++
		case reflect.Int, reflect.Int64:
			old := v.Int()
			v.SetInt(old + 1)
			check(t, root, before, path)
			v.SetInt(old)
			changes++
		case reflect.Bool:
			v.SetBool(!v.Bool())
			check(t, root, before, path)
			v.SetBool(!v.Bool())
			changes++
		default:
			t.Fatal(fmt.Sprint(path, ": a field of kind ", v.Kind()))
		}
	}
	root := plan()
	visit(root, reflect.ValueOf(root), "")
	if changes < 25 || root.Fingerprint() != before {
		t.Errorf("%d changes, %+v", changes, root)
	}
}

func check(t *testing.T, p *Plan, before, what string) {
	t.Helper()
	if p.Fingerprint() == before {
		t.Errorf("%s does not change the fingerprint", what)
	}
}
