#!/usr/bin/env python3
"""check-site.py DIR checks the pages of a site: each link within it leads to a file and to
an anchor that exist, and no page loads anything from another host."""

import html.parser
import pathlib
import sys
import urllib.parse


class Page(html.parser.HTMLParser):
    """The anchors, links and resources of a page."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.resources = set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        for name in ("id", "name"):
            if values.get(name):
                self.ids.add(values[name])
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        for name in ("src", "href"):
            if tag in ("img", "script", "link", "iframe") and values.get(name):
                self.resources.append(values[name])


def check(root):
    """Yields what is wrong with the pages below root."""
    pages = {path: Page(path) for path in root.rglob("*.html")}
    if len(pages) < 10:
        yield f"{root} has {len(pages)} pages: is it the site?"
    for path, page in sorted(pages.items()):
        where = path.relative_to(root)
        for link in page.links + page.resources:
            url = urllib.parse.urlsplit(link)
            if url.scheme or url.netloc:
                if link in page.resources:
                    yield f"{where} loads {link}"
                continue
            target = path
            if url.path:
                target = (path.parent / urllib.parse.unquote(url.path)).resolve()
                if url.path.startswith("/"):
                    target = root / urllib.parse.unquote(url.path.lstrip("/"))
                if target.is_dir():
                    target /= "index.html"
            if not target.is_file() or root not in target.parents:
                yield f"{where} links to {link}: no such file"
            elif url.fragment and target in pages and urllib.parse.unquote(url.fragment) not in pages[target].ids:
                yield f"{where} links to {link}: no such anchor"


def main():
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} DIR")
    found = list(check(pathlib.Path(sys.argv[1]).resolve()))
    for problem in found:
        print(f"check-site: {problem}", file=sys.stderr)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
