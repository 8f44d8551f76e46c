"""Build the site of the documentation, serve it, or add it to a folder of versions.

usage: python3 dev.py docs [--serve | --publish FOLDER]

  (nothing)         build into `site/`; a warning is a failure
  --serve           build, serve on http://127.0.0.1:8000, and build again when a page changes
  --publish FOLDER  build, and put the result into FOLDER as the version of pyproject.toml
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

from development import site_pages
from development.project import ROOT, settings

SITE = ROOT / "site"
CONFIG = site_pages.SOURCE / "zensical.toml"
ADDRESS = "127.0.0.1:8000"
CHECK_INTERVAL = 0.5
LOADED = re.compile(
    r"""<(?:script|img|iframe|link[^>]+rel="?(?:stylesheet|preconnect|preload)"?)[^>]+"""
    r"""(?:src|href)="?(?P<address>(?:https?:)?//[^"\s>]+)"""
)
REDIRECT = (
    '<!doctype html><meta http-equiv="refresh" content="0; url={0}/"><a href="{0}/">{0}</a>\n'
)


def configuration(pages: site_pages.Navigation, *, has_versions: bool = False) -> dict[str, Any]:
    """Return the generator's settings, with what is known elsewhere filled in."""
    config = tomllib.loads((ROOT / CONFIG.name).read_text())
    project = settings()
    config["project"] |= {
        "site_description": project["description"],
        "site_url": project["urls"]["Documentation"],
        "nav": pages,
    }
    # Not as `repo_url`: for that, each page would ask GitHub for the number of stars.
    links = [("fontawesome/brands/github", "Repository")]
    config["project"]["extra"]["social"] = [
        {"icon": icon, "name": name, "link": project["urls"][name]} for icon, name in links
    ]
    if has_versions:  # the theme's name for a `versions.json` beside the versions
        config["project"]["extra"]["version"] = {"provider": "mike"}
    python = config["project"]["plugins"]["mkdocstrings"]["handlers"]["python"]
    python["paths"] = [os.path.relpath(ROOT / "src", CONFIG.parent)]
    python["options"]["extensions"] = [str(ROOT / "development" / "docstrings.py")]
    return config


def toml(value: object) -> str:
    """Return a value as inline TOML: as JSON, but for the keys of tables."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def prepare(*, has_versions: bool = False) -> None:
    """Write the pages and the settings from which the generator makes the site."""
    config = configuration(site_pages.stage(), has_versions=has_versions)
    CONFIG.write_text("".join(f"{key} = {toml(value)}\n" for key, value in config.items()))


def generator(*arguments: str) -> list[str]:
    """Return the generator's command."""
    return [sys.executable, "-m", "zensical", *arguments, "--config-file", str(CONFIG)]


def build(*, has_versions: bool = False) -> None:
    """Build the site; a warning of the generator ends it as a failure."""
    prepare(has_versions=has_versions)
    subprocess.run(generator("build", "--clean", "--strict"), check=True, cwd=CONFIG.parent)
    built = CONFIG.parent / "site"
    if found := requests_to_others(built):
        raise SystemExit(f"Pages that load what others serve: {', '.join(found)}")
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.copytree(built, SITE)


def requests_to_others(site: Path) -> list[str]:
    """Return addresses of other hosts that pages would load, such as fonts and scripts."""
    pages = (page.read_text() for page in site.rglob("*.html"))
    return sorted({found["address"] for page in pages for found in LOADED.finditer(page)})


def modified() -> float:
    """Return when a page, or a docstring, has last changed."""
    files = [*site_pages.DOCS.rglob("*.*"), *(ROOT / "src").rglob("*.py")]
    return max(file.stat().st_mtime for file in files)


def serve() -> int:
    """Serve the site, and stage the pages again when one has changed, until interrupted."""
    prepare()
    command = generator("serve", "--dev-addr", ADDRESS)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no generator is left behind
    seen = modified()
    with subprocess.Popen(command, cwd=CONFIG.parent) as server:
        try:
            while server.poll() is None:
                time.sleep(CHECK_INTERVAL)
                if (latest := modified()) > seen:
                    seen = latest
                    site_pages.stage()
        except KeyboardInterrupt:
            server.terminate()
    return server.returncode


def publish(site: Path, folder: Path, version: str) -> None:
    """Put a built site into a folder of versions; the newest one becomes the default.

    `versions.json` is what the theme's version selector reads.
    """
    listing = folder / "versions.json"
    known = json.loads(listing.read_text()) if listing.exists() else []
    others = [it for it in known if it["version"] != version]
    versions = sorted([version, *(it["version"] for it in others)], key=_numbers, reverse=True)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / version, ignore_errors=True)
    shutil.copytree(site, folder / version)
    entries = [{"version": it, "title": it, "aliases": []} for it in versions]
    entries[0]["aliases"] = ["latest"]
    listing.write_text(json.dumps(entries, indent=2) + "\n")
    (folder / "index.html").write_text(REDIRECT.format(versions[0]))


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def main(arguments: list[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python3 dev.py docs", description=__doc__, usage=__doc__)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--publish", type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    if options.serve:
        return serve()
    try:
        build(has_versions=bool(options.publish))
    except subprocess.CalledProcessError as error:
        return error.returncode
    if options.publish:
        publish(SITE, options.publish, settings()["version"])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
