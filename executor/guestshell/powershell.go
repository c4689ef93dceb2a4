package guestshell

import (
	"bufio"
	"bytes"
	_ "embed"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"unicode/utf16"
)

// Scripts for PowerShell in guests. bootstrap and copyRunnerPS are sent in a command
// line, which cmd.exe limits to 8191 characters.
var (
	//go:embed scripts/bootstrap.ps1
	bootstrap string
	//go:embed scripts/mkdirs.ps1
	mkdirs string
	//go:embed scripts/platform.ps1
	platform string
	//go:embed scripts/copy-runner.ps1
	copyRunnerPS string
)

// powerShell returns the command line with which the PowerShell called name runs text.
//
// An SSH server passes the command line to the user's shell: cmd.exe on Windows, unless
// configured otherwise. The text is encoded, so that cmd.exe, PowerShell and POSIX shells
// all leave it unchanged. With encoded text PowerShell writes XML to standard error
// unless there is -OutputFormat text; the other options are those of GitLab Runner.
func powerShell(name, text string) string {
	return name + " -NoProfile -NoLogo -InputFormat text -OutputFormat text -NonInteractive -ExecutionPolicy Bypass -EncodedCommand " +
		encodePowerShell(text)
}

// encodePowerShell encodes a text for -EncodedCommand, without comment lines.
func encodePowerShell(text string) string {
	var code strings.Builder
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "#") {
			code.WriteString(line + "\n")
		}
	}
	var utf16le bytes.Buffer
	binary.Write(&utf16le, binary.LittleEndian, utf16.Encode([]rune(code.String())))
	return base64.StdEncoding.EncodeToString(utf16le.Bytes())
}

// powerShellQuotes doubles the characters that end a string in single quotes, typographic
// ones included (about_Quoting_Rules).
var powerShellQuotes = strings.NewReplacer(
	"'", "''", "\u2018", "\u2018\u2018", "\u2019", "\u2019\u2019", "\u201a", "\u201a\u201a", "\u201b", "\u201b\u201b",
)

// quotePowerShell returns an expression with the value text.
func quotePowerShell(text string) string { return "'" + powerShellQuotes.Replace(text) + "'" }

// quoteAllPowerShell quotes texts and joins them with the separator between.
func quoteAllPowerShell(texts []string, between string) string {
	quoted := make([]string, len(texts))
	for i, text := range texts {
		quoted[i] = quotePowerShell(text)
	}
	return strings.Join(quoted, between)
}

// withoutBOM skips a byte order mark, which Windows' editors write. After a prefix it
// would be part of the first word.
func withoutBOM(text io.Reader) (io.Reader, error) {
	const bom = "\xef\xbb\xbf"
	r := bufio.NewReader(text)
	switch start, err := r.Peek(len(bom)); {
	case err != nil && !errors.Is(err, io.EOF):
		return nil, err
	case string(start) == bom:
		r.Discard(len(bom))
	}
	return r, nil
}
