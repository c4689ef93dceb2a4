package format

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/internal/strictjson"
)

// A Document is a manifest or an index: one of the two is nil.
type Document struct {
	Manifest *Manifest
	Index    *v1.Index
	// MediaType is that in the document, or else the claimed one, or else OCI's.
	MediaType string
}

// A Claim is the media type of a document according to its registry or index. Empty and
// generic types (text/plain, application/json) claim nothing.
type Claim struct {
	By        string // for people: "the registry"
	MediaType string
}

// A Manifest has the fields of an OCI or Docker (schema 2) image manifest that a [Plan]
// needs.
type Manifest struct {
	MediaType    string            `json:"mediaType"`
	ArtifactType string            `json:"artifactType"`
	Config       v1.Descriptor     `json:"config"`
	Layers       []v1.Descriptor   `json:"layers"`
	Annotations  map[string]string `json:"annotations"`
}

const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
)

// maxLayers limits the work for one manifest. An image of 1 TiB in chunks of 16 MiB has
// 65536.
const maxLayers = 100_000

// ErrAmbiguous: two programs could read two different images from the document.
var ErrAmbiguous = strictjson.ErrAmbiguous

// checkJSON returns [ErrAmbiguous] or [errUnknown].
func checkJSON(raw []byte, known *strictjson.Names) error {
	err := strictjson.Check(raw, known)
	if err == nil || errors.Is(err, ErrAmbiguous) {
		return err
	}
	return fmt.Errorf("%w: %w", errUnknown, err)
}

// The known names in manifests and indexes.
var (
	descriptorNames = strictjson.Known(map[string]*strictjson.Names{
		"mediaType": nil, "artifactType": nil, "digest": nil, "size": nil, "urls": nil, "data": nil, "annotations": nil,
		"platform": strictjson.Known(map[string]*strictjson.Names{"architecture": nil, "os": nil, "os.version": nil, "os.features": nil, "variant": nil}),
	})
	documentNames = strictjson.Known(map[string]*strictjson.Names{
		"schemaVersion": nil, "mediaType": nil, "artifactType": nil, "annotations": nil,
		"config": descriptorNames, "layers": descriptorNames, "manifests": descriptorNames, "subject": descriptorNames,
		"fsLayers": nil, "history": nil,
	})
)

// Parse reads a manifest or an index; its fields say which. The error is [ErrAmbiguous] if its
// mediaType or a claim contradicts them, or if it could be both, and [errUnknown] if it is
// neither, or has invalid digests or sizes.
func Parse(raw []byte, claims ...Claim) (*Document, error) {
	if err := checkJSON(raw, documentNames); err != nil {
		return nil, fmt.Errorf("the manifest: %w", err)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, fmt.Errorf("%w: the manifest is not valid JSON: %w", errUnknown, err)
	}
	var common struct {
		SchemaVersion int    `json:"schemaVersion"`
		MediaType     string `json:"mediaType"`
	}
	if err := json.Unmarshal(raw, &common); err != nil {
		return nil, fmt.Errorf("%w: the manifest is not valid JSON: %w", errUnknown, err)
	}
	own := kindOf(common.MediaType)
	if own == "" && common.MediaType != "" {
		return nil, fmt.Errorf("%w: a manifest of type %q", errUnknown, common.MediaType)
	}
	if v := common.SchemaVersion; v != 0 && v != 2 {
		return nil, fmt.Errorf("%w: a manifest of schema version %d; want 2", errUnknown, v)
	}
	kind, err := kindByFields(fields)
	if err != nil {
		return nil, err
	}
	doc := &Document{}
	for _, claim := range append([]Claim{{"its mediaType", common.MediaType}}, claims...) {
		switch kindOf(claim.MediaType) {
		case "":
		case kind:
			doc.MediaType = cmp.Or(doc.MediaType, claim.MediaType)
		default:
			return nil, fmt.Errorf("the manifest: %w: its fields are those of %s, but %s says %q", ErrAmbiguous, kind, claim.By, claim.MediaType)
		}
	}
	if kind == anIndex {
		doc.MediaType = cmp.Or(doc.MediaType, v1.MediaTypeImageIndex)
		doc.Index, err = parseIndex(raw)
	} else {
		doc.MediaType = cmp.Or(doc.MediaType, v1.MediaTypeImageManifest)
		doc.Manifest, err = parseManifest(raw)
	}
	if err != nil {
		return nil, err
	}
	return doc, nil
}

// Kinds of documents, for people.
const (
	aManifest = "a manifest"
	anIndex   = "an index"
	anOldOne  = "a manifest of an obsolete type"
)

// kindOf returns the kind of document of a media type; empty if it claims nothing.
func kindOf(mediaType string) string {
	base, _ := parameters(mediaType)
	switch {
	case base == v1.MediaTypeImageManifest, base == dockerManifest:
		return aManifest
	case base == v1.MediaTypeImageIndex, base == dockerIndex:
		return anIndex
	case strings.HasPrefix(base, "application/vnd.docker.distribution.manifest."):
		return anOldOne
	}
	return ""
}

// IsIndex reports whether a media type is that of an index.
func IsIndex(mediaType string) bool { return kindOf(mediaType) == anIndex }

// kindByFields refuses documents with the fields of two kinds. null counts as missing.
func kindByFields(fields map[string]json.RawMessage) (string, error) {
	has := func(name string) bool {
		value, ok := fields[name]
		return ok && string(value) != "null"
	}
	layers, index := has("layers") || has("config"), has("manifests")
	for _, name := range []string{"fsLayers", "history"} { // of Docker's schema 1
		if has(name) && (layers || index) {
			return "", fmt.Errorf("the manifest: %w: it has %q, which belongs to another type of manifest", ErrAmbiguous, name)
		}
	}
	switch {
	case layers && index:
		return "", fmt.Errorf(`the manifest: %w: it has "manifests", as an index, and "layers" or "config", as a manifest`, ErrAmbiguous)
	case index:
		return anIndex, nil
	case layers:
		return aManifest, nil
	}
	if _, ok := fields["manifests"]; ok {
		return anIndex, nil // "null": an empty list of some programs
	}
	return "", fmt.Errorf(`%w: neither a manifest nor an index: no "layers", no "manifests"`, errUnknown)
}

func parseIndex(raw []byte) (*v1.Index, error) {
	var index v1.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("%w: the index is not valid JSON: %w", errUnknown, err)
	}
	for _, child := range index.Manifests {
		if err := checkDescriptor("child", child); err != nil {
			return nil, err
		}
	}
	return &index, nil
}

func parseManifest(raw []byte) (*Manifest, error) {
	var m Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("%w: the manifest is not valid JSON: %w", errUnknown, err)
	}
	if len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("%w: %d layers, at most %d are accepted", errUnknown, len(m.Layers), maxLayers)
	}
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if err := checkDescriptor("blob", d); err != nil {
			return nil, err
		}
	}
	return &m, nil
}

func checkDescriptor(what string, d v1.Descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("%w: %s: digest %q: %w", errUnknown, what, d.Digest, err)
	}
	if d.Size < 0 {
		return fmt.Errorf("%w: %s %s has size %d", errUnknown, what, d.Digest, d.Size)
	}
	return nil
}
