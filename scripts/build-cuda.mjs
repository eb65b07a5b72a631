// `npm run build:cuda`: compiles cuda/*.cu for Hopper (sm_90a) into build/cuda/tokenring_cuda.so, the module that the
// addon loads for device "cuda" (native/cuda/module.h). Needs nvcc, not a GPU. The CUDA runtime is linked into it.
// A file is compiled again when it, a header of cuda/ or native/core/, or the compiler changed. It fails where the
// assembler spills registers, needs a stack frame or serialises products (scripts/ptxas.mjs).
// With --report (`npm run check:ptxas`) it also lists what each kernel takes. With --sweep it compiles cuda/sweep/*.cu
// as well, into tokenring_sweep.so: the attention kernels in further tile shapes (native/cuda/sweep.h).
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { findNvcc } from "./machine.mjs";
import { readableName, readPtxas } from "./ptxas.mjs";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const output = join(root, "build", "cuda");
const flags = [
  "-std=c++20",
  "-O3",
  "-lineinfo",
  "-gencode=arch=compute_90a,code=sm_90a",
  "-Xptxas=-v",
  "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra",
  "-Icuda",
  "-Inative",
];

function list(folder, pattern) {
  try {
    return readdirSync(join(root, folder))
      .filter((name) => pattern.test(name))
      .sort()
      .map((name) => join(folder, name));
  } catch (error) {
    if (error.code === "ENOENT") return [];
    throw error;
  }
}

function run(nvcc, args) {
  return new Promise((resolve) => {
    const child = spawn(nvcc, args, { cwd: root, timeout: 20 * 60_000 });
    let said = "";
    child.stdout.on("data", (chunk) => (said += chunk));
    child.stderr.on("data", (chunk) => (said += chunk));
    child.on("error", (error) => resolve({ ok: false, said: error.message }));
    child.on("close", (code) => resolve({ ok: code === 0, said }));
  });
}

/** Compiles one file; its log is kept beside the object. True if there is nothing to say against it. */
async function build(nvcc, source, target) {
  const { ok, said } = await run(nvcc, [...flags, "-c", source, "-o", target]);
  const { kernels, faults } = readPtxas(said);
  if (ok) writeFileSync(`${target}.log`, said);
  const complaints = ok ? faults : [said];
  // The assembler's figures are for the report; whatever else the compiler says is for the reader.
  const remarks = ok
    ? said.split("\n").filter((line) => line.trim() !== "" && !/^(ptxas info|\s+\d+ bytes)/.test(line))
    : [];
  const verdict = complaints.length === 0 ? `${kernels.length} kernels` : "failed";
  console.error([`build:cuda: ${source}: ${verdict}`, ...complaints, ...remarks].join("\n"));
  return complaints.length === 0;
}

/** Makes a library of the objects. */
async function link(nvcc, name, objects, changed) {
  const target = join(output, name);
  if (!changed && existsSync(target)) return true;
  const args = ["-shared", "-cudart=static", "-Xlinker=--exclude-libs,ALL", ...objects, "-o", target];
  const { ok, said } = await run(nvcc, args);
  if (!ok) console.error(`build:cuda: ${name} was not linked:\n${said}`);
  return ok;
}

/** What each kernel takes, as the logs have it. */
function report(kernels, objectOf) {
  for (const source of kernels) {
    console.log(source);
    for (const { name, registers, stack, spills } of readPtxas(
      readFileSync(`${objectOf(source)}.log`, "utf8"),
    ).kernels)
      console.log(
        `  ${readableName(name)}: ${registers} registers, ${spills} bytes spilled, ${stack} of stack`,
      );
  }
}

async function main() {
  const sweep = process.argv.includes("--sweep") ? list("cuda/sweep", /\.cu$/) : [];
  const modules = list("cuda", /\.cu$/);
  const kernels = [...modules, ...sweep];
  const nvcc = findNvcc();
  if (kernels.length === 0) {
    console.log("build:cuda: cuda/ holds no kernel (*.cu): there is nothing to compile");
    return true;
  }
  if (nvcc === null) {
    console.error(
      "build:cuda: nvcc is not found in $CUDA_HOME/bin, /usr/local/cuda/bin or on the PATH. Install the CUDA toolkit " +
        "(12.4 or newer): https://developer.nvidia.com/cuda-downloads. The CPU build needs none of it",
    );
    return false;
  }
  const version = spawnSync(nvcc, ["--version"], { encoding: "utf8", timeout: 30_000 }).stdout;
  const headers = [
    ...list("cuda", /\.cuh$/),
    ...list("native/cuda", /^(attention\w*|cublaslt|launch|module|tensor_map)\.h$/),
    ...list("native/comm", /^(communicator|nccl_library)\.h$/),
    ...list("native/core", /^(check|device|failure|ops|tensor)\.h$/),
  ];
  // Files of the sweep include those of the module.
  const ofSweep = [...list("cuda/sweep", /\.cuh$/), "native/cuda/sweep.h", ...modules];
  const stamp = (source) =>
    JSON.stringify([
      version,
      flags,
      ...[source, ...headers, ...(sweep.includes(source) ? ofSweep : [])].map((file) => [
        file,
        statSync(join(root, file)).mtimeMs,
      ]),
    ]);
  mkdirSync(join(output, "sweep"), { recursive: true });
  const objectOf = (source) => join(output, source.slice("cuda/".length).replace(/\.cu$/, ".o"));
  const stale = kernels.filter((source) => {
    try {
      statSync(objectOf(source));
      return readFileSync(`${objectOf(source)}.stamp`, "utf8") !== stamp(source);
    } catch {
      return true;
    }
  });
  let ok = true;
  const waiting = [...stale];
  const worker = async () => {
    for (let source = waiting.shift(); source !== undefined; source = waiting.shift()) {
      const before = stamp(source);
      const built = await build(nvcc, source, objectOf(source));
      if (built) writeFileSync(`${objectOf(source)}.stamp`, before);
      ok &&= built;
    }
  };
  await Promise.all(Array.from({ length: availableParallelism() }, worker));
  const changed = (sources) => stale.some((source) => sources.includes(source));
  ok &&= await link(nvcc, "tokenring_cuda.so", modules.map(objectOf), changed(modules));
  if (sweep.length > 0) ok &&= await link(nvcc, "tokenring_sweep.so", sweep.map(objectOf), changed(sweep));
  if (ok && process.argv.includes("--report")) report(kernels, objectOf);
  if (ok)
    console.log(
      `build:cuda: ${kernels.length} kernel files for sm_90a in build/cuda, ${stale.length} of them new`,
    );
  return ok;
}

process.exitCode = (await main()) ? 0 : 1;
