import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";

export default defineConfig({
  // bench/ imports the library by its name; here that is what the tests import too.
  resolve: {
    alias: [
      { find: /^tokenring$/, replacement: fileURLToPath(new URL("lib/index.ts", import.meta.url)) },
      { find: /^tokenring\/ops$/, replacement: fileURLToPath(new URL("lib/ops/index.ts", import.meta.url)) },
    ],
  },
  test: {
    include: ["test/**/*.test.ts"],
    pool: "forks",
    maxWorkers: 2,
    testTimeout: 60_000,
    hookTimeout: 60_000,
    // The house's own C++ build and the run directories are no place for tests.
    exclude: ["node_modules/**", "dist/**", "build/**"],
  },
});
