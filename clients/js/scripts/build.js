// Compile the packages, each after those it needs.

import { spawnSync } from "node:child_process";
import { copyFileSync, mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";

import { PACKAGES, ROOT } from "./places.js";

for (const name of PACKAGES) {
  const folder = join(ROOT, "packages", name);
  rmSync(join(folder, "dist"), { recursive: true, force: true });
  const done = spawnSync(join(ROOT, "node_modules", ".bin", "tsc"), ["-p", folder], { stdio: "inherit" });
  if (done.status !== 0) process.exit(done.status ?? 1);
  copyFileSync(join(ROOT, "..", "..", "LICENSE"), join(folder, "LICENSE"));
}

mkdirSync(join(ROOT, "dist"), { recursive: true }); // for packed packages
