// Imports go one way. First that the rule catches what it should, then that the sources keep it.
import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, test } from "vitest";
import { importsOf, includesOf, violations } from "./import-rule.ts";

const broken = (file: string, text: string) => violations([{ file, text }]).length;

describe("reading imports", () => {
  test("every form of import counts, and comments do not", () => {
    const text = `
      import a from "./a.ts"; import type { B } from '../b.ts';
      import {
        c,
        d,
      } from "./c.ts";
      import "./e.ts"; export * from "./f.ts"; export { g } from "./g.ts";
      const h = await import("./h.ts"); type I = import("./i.ts").I; const j = require("./j.cjs");
      // import x from "./comment.ts";
      /* import y from "./block.ts"; */
      const url = "https://example.org"; import k from "./k.ts";
    `;
    expect(importsOf(text).sort()).toEqual(
      ["../b.ts", ..."acefghi".split("").map((name) => `./${name}.ts`), "./j.cjs", "./k.ts"].sort(),
    );
  });

  test("includes of both kinds count, and comments do not", () => {
    const text = '#include "core/tensor.h"\n  #  include <vector>\n// #include "model/rank.h"\n';
    expect(includesOf(text)).toEqual(["core/tensor.h", "vector"]);
  });
});

describe("the rule catches a planted violation", () => {
  test.each([
    ["lib/ops/kernel.ts", 'import { x } from "../policy/policy.ts";'],
    ["lib/policy/policy.ts", 'import type { X } from "../engine/types.ts";'],
    ["lib/tasks/pool.ts", 'import { x } from "../sandbox/local.ts";'],
    ["lib/learn/dapo.ts", 'const x = await import("../run/directory.ts");'],
    ["lib/report/report.ts", 'export * from "../cli/progress.ts";'],
    ["lib/errors.ts", 'import { x } from "./ops/native.ts";'],
    ["lib/learn/dapo.ts", 'import { x } from "../index.ts";'],
    ["lib/learn/dapo.ts", 'import { x } from "tokenring/ops";'],
    ["lib/learn/dapo.ts", 'import { x } from "../../test/house/import-rule.ts";'],
    ["lib/learn/dapo.ts", 'import { x } from "../misc/x.ts";'],
    ["lib/misc/x.ts", 'import { x } from "../ops/native.ts";'],
    ["native/core/tensor.cc", '#include "cpu/device.h"'],
    ["native/cpu/device.cc", '#include "model/rank.h"'],
    ["native/loss/policy_loss.cc", '#include "model/decoder.h"'],
    ["native/model/rank.cc", "#include <napi.h>"],
    ["native/core/device.h", "#include <node_api.h>"],
    ["native/model/rank.cc", '#include "addon/module.h"'],
    ["native/misc/x.cc", '#include "core/tensor.h"'],
    ["cuda/attention.cu", '#include "cuda/device.h"'],
    ["test/native/test_ops.cc", '#include "addon/module.h"'],
    ["test/native/test_ops.cc", '#include "../../native/core/tensor.h"'],
    ["native/cpu/device.cc", '#include "../core/tensor.h"'],
  ])("%s: %s", (file, text) => {
    expect(broken(file, text)).toBe(1);
  });
});

describe("the rule lets pass what is right", () => {
  test.each([
    ["lib/cli/train.ts", 'import { x } from "../run/job.ts";'],
    ["lib/learn/dapo.ts", 'import { x } from "../evaluate/evaluate.ts";'],
    ["lib/ops/native.ts", 'import { TokenringError } from "../errors.ts";'],
    ["lib/random.ts", 'import { TokenringError } from "./errors.ts";'],
    ["lib/index.ts", 'export * from "./learn/dapo.ts";'],
    ["lib/run/config.ts", 'import { z } from "zod"; import path from "node:path";'],
    ["native/addon/module.cc", '#include <napi.h>\n#include "model/rank.h"'],
    ["native/cpu/device.cc", '#include "cpu/simd.h"\n#include "core/device.h"\n#include <vector>'],
    ["cuda/attention.cu", '#include "core/tensor.h"\n#include "launch.h"'],
    ["test/native/test_ops.cc", '#include "cpu/device.h"'],
    ["test/native/cuda_loss.cc", '#include "../../cuda/loss.cu"'],
    ["test/native/emulator/rig.h", '#include "../harness.h"'],
  ])("%s: %s", (file, text) => {
    expect(violations([{ file, text }])).toEqual([]);
  });
});

test("lib/, native/, cuda/ and the C++ tests keep the rule", () => {
  const sources = ["lib", "native", "cuda", "test/native"].flatMap((folder) =>
    readdirSync(folder, { recursive: true, encoding: "utf8" })
      .filter((name) => /\.(ts|cc|h|inc|cu|cuh)$/.test(name))
      .map((name) => path.posix.join(folder, name))
      .map((file) => ({ file, text: readFileSync(file, "utf8") })),
  );
  expect(sources.length).toBeGreaterThan(30);
  expect(violations(sources)).toEqual([]);
});
