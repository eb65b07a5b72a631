// Loaded before the command (node --import): lets a policy that solves nothing be judged by a hash of its patch, so that
// rejection fine-tuning has something to keep; and, where TOKENRING_FAULT says so, kills the process at one of its
// writes to the run directory or when it has saved its state once, or lets a write and all later ones find the disk full.
import { existsSync } from "node:fs";
import fsp from "node:fs/promises";
import { register, syncBuiltinESMExports } from "node:module";

const judge = `
import { createHash } from "node:crypto";
export async function verify({ instance, patch }) {
  const resolved = createHash("sha256").update(instance.instance_id + patch).digest()[0] % 2 === 0;
  return {
    verdict: resolved ? "resolved" : "failed",
    reason: resolved ? null : "tests_failed",
    tests: {}, failToPass: 0, passToPass: 0, exitCode: 0, log: "",
  };
}`;
const hooks = `
export async function load(url, context, next) {
  if (!url.endsWith("/dist/verify/verify.js")) return next(url, context);
  return { format: "module", shortCircuit: true, source: ${JSON.stringify(judge)} };
}`;
register(`data:text/javascript,${encodeURIComponent(hooks)}`);

/** "count" (prints how many writes there were), "kill:N" or "full:N" (the N-th write, from 1), "kill:state". */
const [fault = "", at = "0"] = (process.env.TOKENRING_FAULT ?? "").split(":");
const run = process.env.TOKENRING_FAULT_RUN ?? "";
let writes = 0;
let states = 0;

/** Before a write; `half` does half of it. */
async function write(half, needsSpace = true) {
  writes++;
  if (fault === "full" && needsSpace && writes >= Number(at)) {
    throw Object.assign(new Error("ENOSPC: no space left on device, write"), { code: "ENOSPC" });
  }
  if (fault !== "kill" || (at === "state" ? states === 0 : writes !== Number(at))) return;
  await half?.();
  process.kill(process.pid, "SIGKILL");
  // The signal comes before this function goes on.
  await new Promise(() => {});
}

if (fault !== "") {
  const paths = new WeakMap();
  const { open } = fsp;
  fsp.open = async (file, ...rest) => {
    const handle = await open(file, ...rest);
    paths.set(handle, `${file}`);
    return handle;
  };
  for (const name of ["mkdir", "rename", "rm", "symlink", "writeFile"]) {
    const original = fsp[name];
    fsp[name] = async (file, ...rest) => {
      if (`${rest[0]}`.startsWith(run) || `${file}`.startsWith(run))
        await write(null, !["rename", "rm"].includes(name));
      await original(file, ...rest);
      // The first state of all comes with the directory: nothing is done yet.
      if (name === "rename" && `${rest[0]}` === `${run}/state.json` && existsSync(`${run}/run.json`))
        states++;
    };
  }
  const probe = await open("/dev/null");
  const handles = Object.getPrototypeOf(probe);
  await probe.close();
  for (const name of ["appendFile", "writeFile", "sync", "datasync"]) {
    const original = handles[name];
    handles[name] = async function (data, ...rest) {
      const half = async () => data && original.call(this, data.slice(0, data.length / 2), ...rest);
      if (paths.get(this)?.startsWith(run)) await write(half);
      return original.call(this, data, ...rest);
    };
  }
  syncBuiltinESMExports();
  if (fault === "count") process.on("exit", () => process.stdout.write(`writes: ${writes}\n`));
}
