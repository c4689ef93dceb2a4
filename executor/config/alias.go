package config

import "fmt"

// aliases are the names that the Python tool and early versions gave to settings.
type aliases struct {
	OCIDir      string `toml:"ocidir"`
	VMDir       string `toml:"vmdir"`
	CloneDir    string `toml:"clonedir"`
	OldCacheDir string `toml:"cachedir"`
}

// An Alias is an old name of a setting that the settings file uses.
type Alias struct {
	Old, New string
	value    string
	target   *string
}

// Aliases returns the old names that the settings file uses.
func (s *Settings) Aliases() []Alias {
	d := &s.Defaults
	var used []Alias
	for _, alias := range []Alias{
		{"ocidir", "layout_dir", d.OCIDir, &d.LayoutDir},
		{"vmdir", "image_dir", d.VMDir, &d.ImageDir},
		{"clonedir", "overlay_dir", d.CloneDir, &d.OverlayDir},
		{"cachedir", "cache_dir", d.OldCacheDir, &d.CacheDir},
	} {
		if alias.value != "" {
			used = append(used, alias)
		}
	}
	return used
}

// applyAliases copies the values of old names to the new ones.
func (s *Settings) applyAliases() error {
	for _, alias := range s.Aliases() {
		if *alias.target != "" {
			return fmt.Errorf("[defaults]: %s is the old name of %s: remove one of them", alias.Old, alias.New)
		}
		*alias.target = alias.value
	}
	return nil
}
