import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** Folder of the workspace. */
export const ROOT = dirname(dirname(fileURLToPath(import.meta.url)));

/** The packages, each after those it needs. */
export const PACKAGES = ["client", "react", "tanstack-db"];

/** Where the service finds the script that it serves. */
export const SERVED = join(ROOT, "..", "..", "src", "rowsignal", "sse", "client");
