import { defineConfig } from "vitest/config";

export default defineConfig({
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
