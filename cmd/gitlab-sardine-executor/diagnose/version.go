package diagnose

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"gitlab-sardine-executor/cmd/gitlab-sardine-executor/command"
	"gitlab-sardine-executor/vm/virt"
)

// versionTimeout bounds the connection to libvirt.
const versionTimeout = 5 * time.Second

// Version is the command version. program is the version of this program, built from commit;
// empty for what Go recorded.
func Version(cfg *command.Settings, program, commit string, stdout io.Writer) *cli.Command {
	return &cli.Command{
		Name:  "version",
		Usage: "print the versions of this program, Go, libvirt and QEMU",
		Description: command.Describe("The first line is the version of this program alone, as with --version. The versions of the libvirt daemon and of QEMU\n"+
			"are those at the URI in the settings.", "version"),
		Action: func(c *cli.Context) error {
			lines := []string{program}
			if commit := cmp.Or(commit, recordedCommit()); commit != "" {
				lines = append(lines, "commit: "+commit)
			}
			lines = append(lines, fmt.Sprintf("go: %s %s/%s", runtime.Version(), runtime.GOOS, runtime.GOARCH))
			lines = append(lines, libvirtVersions(c.Context, cfg)...)
			_, err := fmt.Fprintln(stdout, strings.Join(lines, "\n"))
			return err
		},
	}
}

// recordedCommit is the revision that Go recorded; empty if it was built without one.
func recordedCommit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	revision, changed := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			changed = ", with changes"
		}
	}
	if revision == "" {
		return ""
	}
	return revision + changed
}

func libvirtVersions(ctx context.Context, cfg *command.Settings) []string {
	lines := []string{"libvirt: " + virt.FormatVersion(virt.LibraryVersion()) + " (library)"}
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	settings, err := cfg.Load()
	if err != nil {
		return append(lines, "libvirt daemon: not asked: "+command.EscapeControl(err.Error(), '\t'))
	}
	host, err := virt.Open(ctx, settings.Defaults.Connect)
	if err != nil {
		return append(lines, "libvirt daemon: "+command.EscapeControl(err.Error(), '\t'))
	}
	defer host.Close()
	lines = append(lines, fmt.Sprintf("libvirt daemon: %s (%s)", virt.FormatVersion(host.Version()), host.URI()))
	qemu, err := host.QEMUVersion()
	if err != nil {
		return append(lines, "qemu: "+command.EscapeControl(err.Error(), '\t'))
	}
	return append(lines, "qemu: "+virt.FormatVersion(qemu))
}
