// Make /client.js and /client.d.ts, which the service serves, from the source of @rowsignal/client.
// An argument names another folder to write to.

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { build } from "esbuild";

import { ROOT, SERVED } from "./places.js";

const SOURCE = join(ROOT, "packages", "client", "src");
const BANNER = "// Made from clients/js/packages/client by `npm run served`: change that, not this.";
const DECLARED = ["types", "rows", "transactions", "served"];
const PUBLIC = /^export (?:declare )?(?:interface|type|class|function) (\w+)/;
const NAMES = ["keyOf", "TransactionTimeoutError", "subscribe", "changesUrl"];

const target = process.argv[2] ?? SERVED;

async function bundle() {
  const made = await build({
    entryPoints: [join(SOURCE, "served.ts")],
    bundle: true,
    write: false,
    format: "esm",
    target: "es2022",
    charset: "utf8",
    minifySyntax: true,
    minifyWhitespace: true,
    lineLimit: 110,
    banner: { js: BANNER },
  });
  writeFileSync(join(target, "client.js"), made.outputFiles[0].text);
}

function declarations() {
  const folder = mkdtempSync(join(tmpdir(), "rowsignal-types-"));
  const tsc = join(ROOT, "node_modules", ".bin", "tsc");
  const options = ["--emitDeclarationOnly", "--outDir", folder];
  execFileSync(tsc, ["-p", join(ROOT, "packages", "client"), ...options], { stdio: "inherit" });
  const texts = DECLARED.map((name) => readFileSync(join(folder, `${name}.d.ts`), "utf8"));
  rmSync(folder, { recursive: true });
  writeFileSync(join(target, "client.d.ts"), `${BANNER}\n\n${texts.flatMap(statements).join("\n\n")}\n`);
}

// Top-level statements end in column 0; of the modules beside types.ts only public names count.
function statements(text, index) {
  const parts = text.split(/\n(?=\/\*\*|export |import |declare |interface |type )/).map((part) => part.trim());
  const whole = parts.reduce(withComment, []);
  return whole.filter((part) => {
    const name = PUBLIC.exec(part.replace(/^\/\*\*.*?\*\/\n/s, ""))?.[1];
    return name && (index === 0 || NAMES.includes(name));
  });
}

function withComment(done, part) {
  const last = done.at(-1);
  if (last?.startsWith("/**") && last.endsWith("*/")) done[done.length - 1] = `${last}\n${part}`;
  else done.push(part);
  return done;
}

await bundle();
declarations();
