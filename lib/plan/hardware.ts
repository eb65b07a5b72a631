// What a cluster's parts can do, as numbers that each say where they come from.
import { readFile } from "node:fs/promises";
import { z } from "zod";
import { TokenringError } from "../errors.ts";
import { RESERVED_BYTES } from "../policy/memory.ts";

/** How far a number can be trusted: read off our own benchmarks, computed from other people's, or simply taken. */
export type Origin = "measured" | "modelled" | "assumed";

export interface Constant {
  value: number;
  unit: string;
  origin: Origin;
  /** Where it comes from, in words. */
  source: string;
}

const constant = (value: number, unit: string, origin: Origin, source: string): Constant => ({
  value,
  unit,
  origin,
  source,
});

/**
 * One kind of GPU in nodes, and what lies between them. Rates are sustained ones, in bytes, FLOPs or tokens a second; a
 * product of m x k by k x n counts 2 m n k FLOPs, causal attention half of the full square.
 */
export const H200 = {
  /** Of dense bf16 products: what MFU is counted against. */
  peak: constant(989.5e12, "FLOP/s", "modelled", "132 SMs x 1.83 GHz x 4096 FLOPs a clock"),
  memory: constant(141e9, "bytes", "modelled", "the GPU's data sheet"),
  /** What CUDA, NCCL and the allocator's rounding take beside what tokenring asks for. */
  reserved: constant(
    RESERVED_BYTES,
    "bytes",
    "assumed",
    "context, NCCL's buffers, fragmentation; not measured",
  ),
  bandwidth: constant(4.0e12, "bytes/s", "modelled", "a copy at 83 % of the data sheet's 4.8 TB/s"),
  products: constant(
    680e12,
    "FLOP/s",
    "modelled",
    "cuBLAS at 8192^3 gives 769 to 798 with random data; less for ours",
  ),
  attentionForward: constant(640e12, "FLOP/s", "modelled", "FlashAttention-3, causal, from 8k tokens on"),
  attentionBackward: constant(540e12, "FLOP/s", "modelled", "FlashAttention-3, causal, from 8k tokens on"),
  /** Of one entry of the schedule, whatever its size. */
  launch: constant(5e-6, "s", "assumed", "queueing one kernel behind another"),
  nodeLink: constant(350e9, "bytes/s", "modelled", "NVLink 4 by NCCL, a GPU's share in one direction"),
  nodeLatency: constant(10e-6, "s", "assumed", "one NCCL call within a node"),
  clusterLink: constant(46e9, "bytes/s", "modelled", "one 400 Gb/s adapter a GPU, as NCCL uses it"),
  clusterLatency: constant(30e-6, "s", "assumed", "one NCCL call between nodes"),
  hostLink: constant(
    50e9,
    "bytes/s",
    "modelled",
    "PCIe 5.0 x16, 64 GB/s in one direction by its specification, at 80 %; a GH200's NVLink-C2C has 450",
  ),
  /** Of the host's, what one GPU may have pinned. */
  hostMemory: constant(200e9, "bytes", "assumed", "an eighth of a node's 2 TB, less what else runs there"),
  /** Of what reading the weights and keys of a decode step would take at `bandwidth`. */
  decodeEfficiency: constant(
    0.6,
    "",
    "assumed",
    "an inference engine's share of the memory bandwidth; not measured",
  ),
  prefillEfficiency: constant(0.5, "", "assumed", "an inference engine's share of `products`; not measured"),
} satisfies Record<string, Constant>;

export type Hardware = { [Name in keyof typeof H200]: Constant };

const overridesSchema = z.record(
  z.string(),
  z.union([z.number().positive(), z.object({ value: z.number().positive(), source: z.string() })]),
);

/**
 * The constants with those that a JSON file gives in place of them: `{ "attentionForward": 650e12 }`, or with a source,
 * `{ "attentionForward": { "value": 650e12, "source": "…" } }`. What a file says counts as measured.
 * @throws ERR_TOKENRING_INVALID_ARGUMENT naming the file and the key.
 */
export async function readHardware(file: string | undefined): Promise<Hardware> {
  if (file === undefined) return H200;
  const refuse = (why: string): never => {
    throw new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", `${file}: ${why}`);
  };
  let value: unknown;
  try {
    value = JSON.parse(await readFile(file, "utf8"));
  } catch (error) {
    return refuse(`cannot be read as JSON: ${(error as Error).message}`);
  }
  const parsed = overridesSchema.safeParse(value);
  if (!parsed.success) return refuse("give an object of numbers above 0, each alone or as { value, source }");
  const hardware: Hardware = { ...H200 };
  for (const [name, given] of Object.entries(parsed.data)) {
    if (!Object.hasOwn(H200, name))
      return refuse(`"${name}" is no constant; there are ${Object.keys(H200).join(", ")}`);
    const { value, source } = typeof given === "number" ? { value: given, source: file } : given;
    const key = name as keyof Hardware;
    hardware[key] = constant(value, H200[key].unit, "measured", source);
  }
  return hardware;
}
