#!/usr/bin/env bash
# picture.sh makes docs/images/job.svg, the picture in README, from a real run: it
# runs the demo on a terminal and draws what `try` printed. make picture builds
# what it needs.
#
# freeze (MIT) draws it. It embeds no font if the font is named monospace.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

freeze=github.com/charmbracelet/freeze@v0.2.2
picture=docs/images/job.svg

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

script --quiet --return --command scripts/demo.sh "$work/typescript" </dev/null >/dev/null
tr -d '\r' <"$work/typescript" |
	sed -E 's/\x1b\[[0-9;]*m//g' |
	awk '
		/^Running a job: /{ on = 1; sub(/^Running a job: /, "$ "); bold = 1 }
		/^Done\. /{ exit }
		!on { next }
		bold { printf "\033[1m%s\033[0m\n", $0; bold = 0; next }
		/^(==>|<==)/ { printf "\033[36m%s\033[0m\n", $0; next }
		/^WARNING:/ { printf "\033[33m%s\033[0m\n", $0; next }
		NF { print }
	' | fold -s -w 100 >"$work/job.ansi"

go run "$freeze" --language ansi --font.family monospace --font.size 13 --padding 16 \
	--output "$work/job.svg" "$work/job.ansi" </dev/null >/dev/null
install -D -m 644 "$work/job.svg" "$picture"
echo "$picture"
