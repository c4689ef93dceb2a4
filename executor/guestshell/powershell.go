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

// What PowerShell runs in guests. A command line holds the first and the last, for
// which cmd.exe has 8191 characters.
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

// powerShell is the command line by which a PowerShell, called name, runs a text.
//
// SSH servers hand a command line to the user's shell: cmd.exe on Windows, unless
// it was told otherwise. So there may be nothing in it that cmd.exe, PowerShell or
// a POSIX shell would change: the text is encoded. -OutputFormat text, because
// PowerShell writes XML to standard error otherwise when its text is encoded; the
// other options are those of GitLab Runner.
func powerShell(name, text string) string {
	return name + " -NoProfile -NoLogo -InputFormat text -OutputFormat text -NonInteractive -ExecutionPolicy Bypass -EncodedCommand " +
		encodePowerShell(text)
}

// encodePowerShell encodes a text for -EncodedCommand, without its comments, of
// which each has a line of its own.
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

// powerShellQuotes are the characters that end a string in single quotes; doubled,
// they stand for themselves. Typographic ones count as well (about_Quoting_Rules).
var powerShellQuotes = strings.NewReplacer(
	"'", "''", "\u2018", "\u2018\u2018", "\u2019", "\u2019\u2019", "\u201a", "\u201a\u201a", "\u201b", "\u201b\u201b",
)

// quotePowerShell is an expression whose value is text, whatever it holds.
func quotePowerShell(text string) string { return "'" + powerShellQuotes.Replace(text) + "'" }

// quoteAllPowerShell quotes each of them and puts between between them.
func quoteAllPowerShell(texts []string, between string) string {
	quoted := make([]string, len(texts))
	for i, text := range texts {
		quoted[i] = quotePowerShell(text)
	}
	return strings.Join(quoted, between)
}

// withoutBOM is a text without the byte order mark that Windows' editors put before
// it. Behind something else it would be part of the first word.
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
