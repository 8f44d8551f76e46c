import { fileURLToPath } from "node:url";

import { defineConfig } from "vitest/config";

const source = (name: string) => fileURLToPath(new URL(`packages/${name}/src/index.ts`, import.meta.url));

export default defineConfig({
  resolve: {
    alias: {
      "@rowsignal/client": source("client"),
      "@rowsignal/react": source("react"),
      "@rowsignal/tanstack-db": source("tanstack-db"),
    },
  },
  test: {
    include: ["packages/*/test/*.test.ts", "packages/*/test/*.test.tsx"],
    pool: "threads",
    testTimeout: 30_000,
  },
});
