#!/usr/bin/env bash
# site.sh builds the documentation as a site, in .site/public, and checks its links. It needs
# mkdocs (Debian: mkdocs) and no network.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v mkdocs >/dev/null; then
	echo "site: mkdocs is missing; run: scripts/deps.sh site" >&2
	exit 1
fi

# The site has the layout of the repository, so that links between files hold. Only what
# pages link to is copied: the rest of the sources is not part of the site. Go ignores
# directories that begin with a dot.
rm -rf .site
mkdir -p .site/source
git ls-files -z -- ':(glob)*.md' docs contrib config.example.toml LICENSE |
	xargs -0 cp --parents -t .site/source
grep -ohE '\]\([^)#: ]+' README.md CONTRIBUTING.md CHANGELOG.md docs/*.md | sed -E 's/^\]\((\.\.\/)*//' | sort -u |
	while read -r path; do
		if [[ -f $path && $path != *.md ]]; then
			cp --parents -t .site/source -- "$path"
		fi
	done

mkdocs build --strict 2> >(grep -v '^INFO' >&2)
python3 scripts/check-site.py .site/public
