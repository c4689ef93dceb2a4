// Package origin tells the settings that apply, and where each of them comes from.
package origin

import (
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/pelletier/go-toml/v2"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/oci/space"
)

// A setting is one that applies.
type setting struct {
	key string
	// value in TOML. A password is masked.
	value string
	// from says where it comes from: "default", "[defaults], line 4".
	from string
}

// masked is shown instead of a password.
const masked = "********"

// Print writes the settings as TOML, with a comment on each that says where it comes from: those
// of the host and, under [[image]], those for an image, a reference as a job has it. If image
// is empty, they are those for images without a section.
func Print(w io.Writer, s *config.Settings, image string) error {
	written, err := read(s)
	if err != nil {
		return err
	}
	host, err := ofHost(s, written)
	if err != nil {
		return err
	}
	perImage, err := ofImage(s, image, written)
	if err != nil {
		return err
	}
	serve, err := ofServe(s, written)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "# Settings file: %s\n\n[defaults]\n", cmp.Or(s.Path, "none; every setting has its default"))
	if err := table(w, host); err != nil {
		return err
	}
	if image != "" {
		if !s.Allowed(image) {
			fmt.Fprintln(w, "\n# allowed_images does not allow this image:")
		}
		fmt.Fprintln(w, "\n[[image]]")
		name, err := toTOML("match", image)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "match = %s\n", name)
	}
	if err := table(w, perImage); err != nil {
		return err
	}
	fmt.Fprintln(w, "\n[serve]")
	return table(w, serve)
}

func table(w io.Writer, settings []setting) error {
	columns := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range settings {
		fmt.Fprintf(columns, "%s = %s\t# %s\n", s.key, s.value, s.from)
	}
	return columns.Flush()
}

// read finds the keys in the settings file.
func read(s *config.Settings) (places, error) {
	if s.Path == "" {
		return places{}, nil
	}
	text, err := os.ReadFile(s.Path)
	if err != nil {
		return places{}, fmt.Errorf("%w: %w", config.ErrSettings, err)
	}
	return find(text), nil
}

// ofServe returns the settings of the command serve.
func ofServe(s *config.Settings, written places) (settings []setting, err error) {
	table := reflect.ValueOf(s.Serve)
	for i := range table.NumField() {
		key, from := table.Type().Field(i).Tag.Get("toml"), "default"
		if line, ok := written.serve[key]; ok {
			from = place("[serve]", line)
		}
		if settings, err = add(settings, key, table.Field(i).Interface(), from); err != nil {
			return nil, err
		}
	}
	return settings, nil
}

// ofHost returns the settings of the host, with the directories that result.
func ofHost(s *config.Settings, written places) ([]setting, error) {
	dirs, err := s.Dirs()
	if err != nil {
		return nil, err
	}
	result := map[string]string{
		"storage": filepath.Dir(dirs.Jobs), "layout_dir": dirs.Layouts, "image_dir": dirs.Store,
		"overlay_dir": dirs.Overlays, "cache_dir": dirs.Caches, "connect": cmp.Or(s.Defaults.Connect, defaultConnect()),
		"log_format": cmp.Or(s.Defaults.LogFormat, "text"),
	}
	old := make(map[string]string)
	for _, alias := range s.Aliases() {
		old[alias.New] = alias.Old
	}
	var settings []setting
	table := reflect.ValueOf(s.Defaults)
	for i := range table.NumField() {
		key := table.Type().Field(i).Tag.Get("toml")
		if key == "" { // an embedded table
			continue
		}
		var value any = table.Field(i).Interface()
		if text, ok := result[key]; ok {
			value = text
		}
		from := "default"
		if line, ok := written.defaults[key]; ok {
			from = place("[defaults]", line)
		} else if alias := old[key]; alias != "" {
			from = place("[defaults]", written.defaults[alias]) + ", as " + alias
		}
		if settings, err = add(settings, key, value, from); err != nil {
			return nil, err
		}
	}
	return settings, nil
}

// defaultConnect is libvirt's URI if the settings name none, as with virsh.
func defaultConnect() string {
	if os.Geteuid() == 0 {
		return "qemu:///system"
	}
	return "qemu:///session"
}

// ofImage returns the settings that an image section can override.
func ofImage(s *config.Settings, image string, written places) (settings []setting, err error) {
	var resolved config.Resolved
	section, number := config.Section{}, -1
	if image != "" {
		resolved = s.For(image)
		section, number = s.SectionFor(image)
	} else {
		for _, resolved = range s.All() {
			break // the first is [defaults]
		}
	}
	own := make(map[string]int)
	if number >= 0 && number < len(written.images) {
		own = written.images[number]
	}
	where := fmt.Sprintf("[[image]] match = %q", section.Match)
	if image != "" {
		for _, special := range []struct {
			key   string
			value any
			set   bool
		}{{"image", resolved.Image, section.Image != ""}, {"trusted", resolved.Trusted, section.Trusted}, {"domain", resolved.Domain, section.Domain != ""},
			{"idle_machines", section.IdleMachines, section.IdleMachines > 0},
			{"idle_time", config.Duration(section.IdleLimit()), section.IdleTime != nil}} {
			from := "default"
			if special.set {
				from = place(where, own[special.key])
			}
			if settings, err = add(settings, special.key, special.value, from); err != nil {
				return nil, err
			}
		}
	}
	kinds := reflect.TypeFor[config.PerImage]()
	for i := range kinds.NumField() {
		field := kinds.Field(i)
		key, from := field.Tag.Get("toml"), "default"
		if !reflect.ValueOf(section.PerImage).Field(i).IsNil() {
			from = place(where, own[key])
		} else if !reflect.ValueOf(s.Defaults.PerImage).Field(i).IsNil() {
			from = place("[defaults]", written.defaults[key])
		}
		value := reflect.ValueOf(resolved).FieldByName(field.Name).Convert(field.Type.Elem()).Interface()
		if key == "password" && resolved.Password != "" {
			value = masked
		}
		if settings, err = add(settings, key, value, from); err != nil {
			return nil, err
		}
	}
	return settings, nil
}

func place(table string, line int) string {
	if line == 0 {
		return table
	}
	return fmt.Sprintf("%s, line %d", table, line)
}

func add(settings []setting, key string, value any, from string) ([]setting, error) {
	text, err := toTOML(key, value)
	return append(settings, setting{key, text, from}), err
}

// toTOML writes a value as the settings file has it.
func toTOML(key string, value any) (string, error) {
	switch v := value.(type) {
	case config.Duration:
		value = time.Duration(v).String()
	case config.Bytes:
		value = size(int64(v))
	case config.CPUs:
		if value = int(v); v == config.AutoCPUs {
			value = "auto"
		}
	case config.Policies:
		words := make([]string, len(v))
		for i, policy := range v {
			words[i] = string(policy)
		}
		value = words
	case config.Reserve:
		value = reserve(space.Reserve(v))
	case slog.Level:
		value = strings.ToLower(v.String())
	case []string:
		if v == nil {
			value = []string{}
		}
	}
	text, err := toml.Marshal(map[string]any{key: value})
	if err != nil {
		return "", fmt.Errorf("write the setting %s: %w", key, err)
	}
	return strings.TrimSpace(strings.TrimPrefix(string(text), key+" = ")), nil
}

// size writes a number of bytes without rounding.
func size(bytes int64) string {
	for _, unit := range []struct {
		name  string
		bytes int64
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if bytes != 0 && bytes%unit.bytes == 0 {
			return strconv.FormatInt(bytes/unit.bytes, 10) + unit.name
		}
	}
	return strconv.FormatInt(bytes, 10)
}

func reserve(r space.Reserve) string {
	switch {
	case r == space.DefaultReserve:
		return "auto"
	case r.Percent > 0:
		return strconv.FormatFloat(r.Percent, 'g', -1, 64) + "%"
	}
	return size(r.Bytes)
}
