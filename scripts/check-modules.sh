#!/usr/bin/env bash
# check-modules.sh fails if go.mod or go.sum is not what go mod tidy writes, or if a
# module that this code imports stands among the indirect ones.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! diff=$(go mod tidy -diff); then
	echo "$diff"
	echo "check-modules: run: go mod tidy" >&2
	exit 1
fi

# Two blocks: the direct requirements, then the indirect ones. go mod tidy removes the
# comment "// indirect" but leaves the line where it was.
awk '
	/^require [^(]/ { print FILENAME ": " FNR ": a requirement outside the two blocks: " $0; bad = 1 }
	/^require \(/   { block++; next }
	/^\)/           { next }
	block && /^\t/  {
		indirect = /\/\/ indirect$/
		if (indirect != (block == 2)) {
			print FILENAME ":" FNR ": " (indirect ? "indirect module in the direct" : "direct module in the indirect") " block: " $1
			bad = 1
		}
	}
	END { if (block != 2) { print FILENAME ": " block " blocks of requirements, not two"; bad = 1 }; exit bad }
' go.mod
