// Package command has what the commands share: arguments, flags, settings and output.
package command

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// errHelpShown ends a command that has printed its help.
var errHelpShown = errors.New("help shown")

// arguments returns between least and most words that are not flags. Flags may follow
// them, as with skopeo and podman; the cli package reads only those before. Words
// after -- are never flags.
func arguments(c *cli.Context, least, most int) ([]string, error) {
	var words []string
	for rest := c.Args().Slice(); len(rest) > 0; {
		word := rest[0]
		rest = rest[1:]
		if word == "--" {
			words = append(words, rest...)
			break
		}
		if len(word) < 2 || word[0] != '-' {
			words = append(words, word)
			continue
		}
		var err error
		if rest, err = setFlag(c, word, rest); err != nil {
			return nil, err
		}
	}
	if len(words) < least || len(words) > most {
		return nil, fmt.Errorf("usage: %s", UsageOf(c))
	}
	return words, nil
}

// UsageOf returns the usage line of a command.
func UsageOf(c *cli.Context) string {
	return fmt.Sprintf("%s %s [options] %s", c.App.Name, c.Command.Name, c.Command.ArgsUsage)
}

// setFlag sets the flag in word, to the value after its = or to the next word, and
// returns the words that are left.
func setFlag(c *cli.Context, word string, rest []string) ([]string, error) {
	name, value, hasValue := strings.Cut(strings.TrimLeft(word, "-"), "=")
	if name == "help" || name == "h" {
		cli.HelpPrinter(c.App.Writer, cli.CommandHelpTemplate, c.Command)
		return nil, errHelpShown
	}
	i := slices.IndexFunc(c.Command.Flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), name) })
	if i < 0 {
		return nil, fmt.Errorf("%s has no flag %s (usage: %s)", c.Command.Name, word, UsageOf(c))
	}
	if _, isBool := c.Command.Flags[i].(*cli.BoolFlag); !hasValue && isBool {
		value, hasValue = "true", true
	}
	if !hasValue {
		if len(rest) == 0 {
			return nil, fmt.Errorf("%s: flag %s needs a value", c.Command.Name, word)
		}
		value, rest = rest[0], rest[1:]
	}
	if err := c.Set(name, value); err != nil {
		return nil, fmt.Errorf("%s: flag %s: invalid value %q: %w", c.Command.Name, word, value, err)
	}
	return rest, nil
}

// WithArguments returns an action that passes its arguments to run.
func WithArguments(least, most int, run func(c *cli.Context, args []string) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		args, err := arguments(c, least, most)
		if errors.Is(err, errHelpShown) {
			return nil
		}
		if err != nil {
			return err
		}
		return run(c, args)
	}
}

// Describe appends examples, without the name of the program, to a description.
func Describe(text string, examples ...string) string {
	var b strings.Builder
	b.WriteString(text)
	if text != "" {
		b.WriteString("\n\n")
	}
	b.WriteString("Example:")
	for _, example := range examples {
		b.WriteString("\n  gitlab-sardine-executor " + example)
	}
	return b.String()
}
