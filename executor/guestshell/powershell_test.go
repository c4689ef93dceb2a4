package guestshell

import (
	"encoding/base64"
	"encoding/binary"
	"flag"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

// decodePowerShell parses a command line as PowerShell does.
func decodePowerShell(t *testing.T, line string) (options []string, text string) {
	t.Helper()
	words := strings.Split(line, " ")
	last := len(words) - 1
	raw, err := base64.StdEncoding.DecodeString(words[last])
	if err != nil || len(raw)%2 != 0 {
		t.Fatalf("%d bytes, %v: %s", len(raw), err, words[last])
	}
	units := make([]uint16, len(raw)/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(raw[2*i:])
	}
	return words[:last], string(utf16.Decode(units))
}

// The command lines that start PowerShell. They contain no character that cmd.exe,
// PowerShell or a POSIX shell would change, and are not too long for cmd.exe.
func TestPowerShellCommands(t *testing.T) {
	const options = "-NoProfile -NoLogo -InputFormat text -OutputFormat text -NonInteractive -ExecutionPolicy Bypass -EncodedCommand"
	for _, test := range []struct{ name, line, golden string }{
		{"pwsh", shells["pwsh"].Command, "bootstrap.golden"},
		{"powershell", shells["powershell"].Command, "bootstrap.golden"},
		{"powershell", powerShell("powershell", copyRunnerPS), "copy-runner.golden"},
	} {
		t.Run(test.name+" "+test.golden, func(t *testing.T) {
			if !regexp.MustCompile(`^[A-Za-z0-9+/= -]+$`).MatchString(test.line) || len(test.line) > 8000 {
				t.Errorf("a shell could change this, or it is too long (%d bytes): %s", len(test.line), test.line)
			}
			words, text := decodePowerShell(t, test.line)
			if want := append([]string{test.name}, strings.Fields(options)...); !slices.Equal(words, want) {
				t.Errorf("started as %q, want %q", words, want)
			}
			golden := "testdata/powershell/" + test.golden
			if *update {
				if err := os.WriteFile(golden, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), text); diff != "" {
				t.Errorf("text (-want +got):\n%s", diff)
			}
			// A text with that word makes PowerShell itself read standard input.
			if strings.Contains(text, "$input") {
				t.Error("it uses $input")
			}
		})
	}
}

func TestEncodePowerShell(t *testing.T) {
	_, text := decodePowerShell(t, "x "+encodePowerShell("# comment\n\n  'grüß 🙂'\n'#' # stays\n"))
	if want := "'grüß 🙂'\n'#' # stays\n"; text != want {
		t.Errorf("got %q, want %q", text, want)
	}
}

// singleQuoted reads a string in single quotes as PowerShell's tokenizer does: a quote
// character ends it, unless another one follows. It also returns the rest of the text.
func singleQuoted(text string) (value, rest string) {
	quote := func(r rune) bool { return r == '\'' || r >= 0x2018 && r <= 0x201b }
	runes := []rune(text)
	if len(runes) == 0 || !quote(runes[0]) {
		return "", text
	}
	for i := 1; i < len(runes); i++ {
		if quote(runes[i]) {
			if i+1 == len(runes) || !quote(runes[i+1]) {
				return value, string(runes[i+1:])
			}
			value += string(runes[i])
			i++
			continue
		}
		value += string(runes[i])
	}
	return value, "unterminated"
}

var hostileToPowerShell = []string{
	"", "plain", "two words", "it's", "''", "'", "‘single’ ‚low‛", "’; Remove-Item C:\\ -Recurse; ’", "’'‘", "“double” \"",
	"$env:PATH $(1+1) `n ` ``", "line one\nline two\r\nline three", "# no comment", "@'\nhere\n'@", "'; exit 3; '", "%PATH% ^& |", "grüß 🙂", "–dash", "\t",
}

func TestQuotePowerShell(t *testing.T) {
	for _, value := range hostileToPowerShell {
		got, rest := singleQuoted(quotePowerShell(value))
		if got != value || rest != "" {
			t.Errorf("%q became %s, which is %q, and %q follows", value, quotePowerShell(value), got, rest)
		}
	}
	if got, want := quoteAllPowerShell([]string{"a b", "c'd"}, ", "), "'a b', 'c''d'"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func FuzzQuotePowerShell(f *testing.F) {
	for _, value := range hostileToPowerShell {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value string) {
		value = strings.ToValidUTF8(value, "?")
		if got, rest := singleQuoted(quotePowerShell(value)); got != value || rest != "" {
			t.Errorf("%q became %q, and %q follows", value, got, rest)
		}
	})
}

func TestExports(t *testing.T) {
	variables := map[string]string{"B": "it's ‘quoted’\nand $HOME", "A": "", "BAD-NAME": "x", "BAD;rm": "x", "1ST": "x"}
	for _, test := range []struct{ shell, want string }{
		{"bash", "command export A='' 2>/dev/null\ncommand export B='it'\"'\"'s ‘quoted’\nand $HOME' 2>/dev/null\n"},
		{"pwsh", "$env:A = ''\n$env:B = 'it''s ‘‘quoted’’\nand $HOME'\n"},
		{"powershell", "$env:A = ''\n$env:B = 'it''s ‘‘quoted’’\nand $HOME'\n"},
	} {
		if got := shells[test.shell].exports(variables); got != test.want {
			t.Errorf("%s: got\n%s\nwant\n%s", test.shell, got, test.want)
		}
	}
}

func TestJobScript(t *testing.T) {
	const status = "\nif (!$?) { if ($LASTEXITCODE) { exit $LASTEXITCODE } else { exit 1 } }\n"
	for _, test := range []struct {
		shell   string
		command []string
		want    string
	}{
		{"sh", nil, "#!/usr/bin/env bash\nset -e\nuname -a\nexit 0\n"},
		{"bash", []string{"echo", "it's"}, "#!/usr/bin/env bash\nset -e\necho 'it'\"'\"'s'\nexit 0\n"},
		{"pwsh", nil, "[Environment]::OSVersion.VersionString" + status},
		{"powershell", []string{"cmd", "/c", "echo it's"}, "& 'cmd' '/c' 'echo it''s'" + status},
	} {
		if got := shells[test.shell].JobScript(test.command); got != test.want {
			t.Errorf("%s %q: got\n%s\nwant\n%s", test.shell, test.command, got, test.want)
		}
	}
}

func TestWithoutBOM(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "a": "a", "\xef\xbb": "\xef\xbb", "\xef\xbb\xbf": "", "\xef\xbb\xbfgrüß\r\n": "grüß\r\n", "x\xef\xbb\xbf": "x\xef\xbb\xbf",
	} {
		r, err := withoutBOM(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); string(got) != want || err != nil {
			t.Errorf("%q: got %q, %v; want %q", text, got, err, want)
		}
	}
}

func TestMakeDirsWindows(t *testing.T) {
	got := makeDirsWindows([]string{`C:\builds`, `D:\it's here`})
	if first, _, _ := strings.Cut(got, "\n"); first != `$dirs = 'C:\builds', 'D:\it''s here'` || !strings.Contains(got, "foreach ($dir in $dirs)") {
		t.Errorf("got\n%s", got)
	}
}
