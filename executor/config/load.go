package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/agext/levenshtein"
	"github.com/pelletier/go-toml/v2"
)

// FileEnv is the environment variable that names the settings file.
const FileEnv = "GITLAB_SARDINE_EXECUTOR_CONFIG"

// Load reads the settings file: explicit if it is not empty, else the one that
// [FileEnv] names, else the first that exists of
// ~/.config/gitlab-sardine-executor/config.toml and
// /etc/gitlab-sardine-executor/config.toml. Without a file every setting has its
// default. The error is an [ErrSettings].
func Load(explicit string) (*Settings, error) {
	paths, must := candidates(explicit)
	for _, file := range paths {
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) && !must {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSettings, err)
		}
		s, err := Parse(text)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrSettings, file, err)
		}
		s.Path = file
		return s, nil
	}
	return Parse(nil)
}

// candidates are the files to try, first match wins; must says that the first has to
// exist.
func candidates(explicit string) (paths []string, must bool) {
	if explicit != "" {
		return []string{explicit}, true
	}
	if named := os.Getenv(FileEnv); named != "" {
		return []string{named}, true
	}
	if dir, err := os.UserConfigDir(); err == nil {
		paths = append(paths, filepath.Join(dir, "gitlab-sardine-executor", "config.toml"))
	}
	return append(paths, "/etc/gitlab-sardine-executor/config.toml"), false
}

// Parse reads the text of a settings file. An unknown key is an error that names the
// nearest known one.
func Parse(text []byte) (*Settings, error) {
	s := &Settings{Defaults: hostDefaults(), Serve: serveDefaults()}
	if err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(s); err != nil {
		return nil, describeTOML(err)
	}
	if err := s.applyAliases(); err != nil {
		return nil, err
	}
	return s, s.check()
}

// describeTOML names the line of an error, and for an unknown key the likely one.
func describeTOML(err error) error {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) && len(strict.Errors) > 0 {
		unknown := strict.Errors[0]
		row, _ := unknown.Position()
		key := unknown.Key()
		text := fmt.Sprintf("line %d: unknown key %q", row, strings.Join(key, "."))
		if misplaced(key) {
			text += " (it belongs in [defaults])"
		} else if nearest := nearestKey(key); nearest != "" {
			text += fmt.Sprintf(" (did you mean %q?)", nearest)
		}
		return errors.New(text)
	}
	var decode *toml.DecodeError
	if errors.As(err, &decode) {
		row, _ := decode.Position()
		if slices.Contains(decode.Key(), "host_access") {
			return fmt.Errorf("line %d: host_access: want true or false: nothing here can limit a guest to some ports of this host (docs/network.md shows a firewall rule that does)", row)
		}
		return fmt.Errorf("line %d: %w", row, err)
	}
	return err
}

// misplaced reports whether a key that is unknown where it stands is one of [defaults].
func misplaced(key []string) bool {
	return len(key) > 0 && key[0] != "defaults" && slices.Contains(tomlKeys(reflect.TypeFor[Defaults]()), key[len(key)-1])
}

// nearestKey is the known key with the smallest edit distance; empty if none is near.
func nearestKey(key []string) string {
	if len(key) == 0 {
		return ""
	}
	written := key[len(key)-1]
	var known []string
	switch {
	case len(key) == 1:
		known = append(tomlKeys(reflect.TypeFor[Settings]()), tomlKeys(reflect.TypeFor[Defaults]())...)
	case key[0] == "defaults":
		known = tomlKeys(reflect.TypeFor[Defaults]())
	case key[0] == "serve":
		known = tomlKeys(reflect.TypeFor[Serve]())
	default:
		known = tomlKeys(reflect.TypeFor[Section]())
	}
	best, distance := "", len(written)/2+1
	for _, candidate := range known {
		if d := levenshtein.Distance(written, candidate, nil); d < distance {
			best, distance = candidate, d
		}
	}
	return best
}

// tomlKeys are the keys of a table without aliases, those of embedded structs included.
func tomlKeys(t reflect.Type) []string {
	var keys []string
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous && f.Type != reflect.TypeFor[aliases]() {
			keys = append(keys, tomlKeys(f.Type)...)
		} else if key := f.Tag.Get("toml"); key != "" && key != "-" {
			keys = append(keys, key)
		}
	}
	return keys
}
