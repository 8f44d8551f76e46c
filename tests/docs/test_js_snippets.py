"""JavaScript and TypeScript on pages compiles against the packages that they are about."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from acceptance.npm_tools import PACKAGES, WORKSPACE, run
from support.doc_pages import ROOT, Block, blocks

pytest_plugins = ["acceptance.npm_workspace"]
pytestmark = pytest.mark.timeout(300)  # the first one installs and builds

PAGES = [ROOT / "docs" / "how-to" / "browser-client.md", *sorted(PACKAGES.glob("*/README.md"))]
KINDS = {"js", "jsx", "ts", "tsx"}
# What a reader of a snippet has already; a snippet that brings its own has it from there.
CONTEXT = {
    "subscribe": 'import { subscribe } from "@rowsignal/client";',
    "createCollection": 'import { createCollection } from "@tanstack/db";',
    "Order": 'interface Order { id: number; status: "new" | "paid"; total: string }',
    "orders": 'declare const orders: import("@rowsignal/client").Subscription<Order>;',
    "session": "declare const session: { accessToken: string; renew(): Promise<string> };",
    "draw": "declare function draw(rows: readonly Order[]): void;",
    "log": "declare function log(operation: string, row: unknown): void;",
    "show": "declare function show(status: string, reason: string | null): void;",
    "save": "declare function save(mutations: unknown): Promise<string>;",
}
BROUGHT = r"\b(?:const|let|function|interface|class|type)\s+{name}\b|\bimport\b[^;]*\b{name}\b"
OPTIONS = {
    "extends": str(WORKSPACE / "tsconfig.base.json"),
    "compilerOptions": {
        "noEmit": True,
        "jsx": "react-jsx",
        "module": "esnext",
        "moduleResolution": "bundler",
        "skipLibCheck": True,
        "noUnusedLocals": False,
    },
}


def completed(block: Block) -> str:
    """The snippet, with what it takes for granted in front of it."""
    needed = [_declaration(block.text, name) for name in reversed(CONTEXT)]
    return "\n".join(["export {};", *dict.fromkeys(filter(None, needed)), block.text])


def _declaration(text: str, name: str) -> str | None:
    is_brought = re.search(BROUGHT.format(name=name), text)
    is_used = name == "Order" or re.search(rf"\b{name}\b", text)
    return CONTEXT[name] if is_used and not is_brought else None


def snippets() -> Iterator[Block]:
    for page in PAGES:
        yield from (block for block in blocks(page) if block.kind in KINDS)


def test_snippets_compile(npm_workspace: Path) -> None:
    folder = npm_workspace / "node_modules" / ".snippets"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for number, block in enumerate(snippets()):
        kind = "tsx" if block.kind.endswith("x") else "ts"
        (folder / f"{block.page.parent.name}-{number}-line-{block.line}.{kind}").write_text(
            completed(block)
        )
    assert len(list(folder.iterdir())) >= len(PAGES)
    (folder / "tsconfig.json").write_text(json.dumps({**OPTIONS, "include": ["*.ts", "*.tsx"]}))
    run("npx", "tsc", "-p", folder)
