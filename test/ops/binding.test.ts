// The addon exports what lib/ops/binding.ts declares, no more and no less.
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { EXPECTED_ABI } from "../../lib/ops/binding.ts";
import { loadBinding } from "../../lib/ops/native.ts";

const source = readFileSync(new URL("../../lib/ops/binding.ts", import.meta.url), "utf8");

/** Names of the members of an interface that binding.ts declares. */
function declared(name: string): string[] {
  const body =
    new RegExp(`export interface ${name}(?: extends \\w+)? \\{\\n([\\s\\S]*?)\\n\\}`).exec(source)?.[1] ?? "";
  return [...body.matchAll(/^ {2}(?:readonly )?(\w+)[(:]/gm)].map((match) => match[1] as string).sort();
}

describe("the addon", () => {
  const binding = loadBinding();

  it("exports the members of Binding", () => {
    expect(declared("Binding")).toContain("setErrorClass");
    expect(Object.keys(binding).sort()).toEqual(declared("Binding"));
  });

  it.each([
    ["Rank", "sampleSession", ["NativeRank", "NativeLocalRank"]],
    ["Communicator", "allReduce", ["NativeCommunicator"]],
    ["DeviceTensor", "toDLPack", ["NativeDeviceTensor"]],
  ] as const)("has the members of Native%s on its prototype", (name, one, interfaces) => {
    const expected = interfaces.flatMap(declared).sort();
    expect(expected).toContain(one);
    const members = Object.getOwnPropertyNames(binding[name].prototype).filter(
      (member) => member !== "constructor",
    );
    expect(members.sort()).toEqual(expected);
  });

  it("describes itself", () => {
    expect(binding.abi).toBe(EXPECTED_ABI);
    expect(["avx512", "avx2", "scalar"]).toContain(binding.isa);
    const bf16 = binding.bf16();
    expect(bf16.amxFault === null ? ["amx"] : [binding.isa]).toContain(bf16.isa);
    expect(bf16.amxFault).not.toBe("");
    expect(binding.cores).toBeGreaterThanOrEqual(1);
  });

  it("says what the CUDA driver knows, or why it knows nothing", () => {
    const cuda = binding.cuda();
    // `npm run build:cuda` may have been run here or not.
    const module = fileURLToPath(new URL("../../build/cuda/tokenring_cuda.so", import.meta.url));
    expect(cuda.compiled).toBe(existsSync(module));
    for (const device of cuda.devices) {
      expect(device.name).toMatch(/\w/);
      expect(device.memoryBytes).toBeGreaterThan(2 ** 28);
    }
    if (cuda.devices.length === 0) expect(cuda.reason).toMatch(/driver|libcuda/);
    else if (cuda.compiled) expect(cuda.reason).toBeNull();
    else expect(cuda.reason).toMatch(/build:cuda/);
  });
});
