// What the assembler (ptxas -v) says of kernels, and what of it fails the build: it makes a kernel slow without a word.

/** Remarks by code: setmaxnreg ignored; products of wgmma made to run one after another, for three reasons. */
const faults = new Set(["C7508", "C7510", "C7513", "C7514"]);

/**
 * Reads a log of `nvcc -Xptxas=-v`.
 *
 * @param {string} log
 * @returns {{ kernels: { name: string, registers: number, stack: number, spills: number }[], faults: string[] }}
 *   Bytes a thread of stack and of spills, stores and loads together; one line for each thing that is wrong.
 */
export function readPtxas(log) {
  const kernels = [];
  const wrong = [];
  let current = null;
  for (const line of log.split("\n")) {
    const entry = /Compiling entry function '([^']+)'/.exec(line);
    if (entry) {
      current = { name: entry[1], registers: 0, stack: 0, spills: 0 };
      kernels.push(current);
    }
    const code = /\((C\d+)\)/.exec(line)?.[1];
    if (code !== undefined && faults.has(code)) wrong.push(line.trim());
    const memory = /(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line);
    // Of a function that is not inlined there is one such line too, and no entry: it counts with the last.
    if (memory && current) {
      current.stack += Number(memory[1]);
      current.spills += Number(memory[2]) + Number(memory[3]);
    }
    const used = /Used (\d+) registers/.exec(line);
    if (used && current) current.registers = Number(used[1]);
  }
  for (const { name, stack, spills } of kernels)
    if (stack + spills > 0)
      wrong.push(`${name}: ${stack} bytes of stack frame, ${spills} bytes of spilled registers a thread`);
  return { kernels, faults: wrong };
}

/** A mangled name of a kernel as its own name and its template's arguments, as far as they are numbers and types. */
export function readableName(mangled) {
  // Nested names: lengths before identifiers; the kernel's is the last that ends in _kernel.
  const own = /\d+([a-z_]+_kernel)/.exec(mangled)?.[1];
  if (own === undefined) return mangled;
  const rest = mangled.slice(mangled.indexOf(own) + own.length);
  const template = /^I(.*?)E+v/.exec(rest)?.[1] ?? "";
  const parts = [...template.matchAll(/L[ib](\d+)|\d+([A-Z][A-Za-z0-9]*?)(?=I|E|L|$)/g)].map(
    (m) => m[1] ?? m[2],
  );
  return parts.length === 0 ? own : `${own}<${parts.join(", ")}>`;
}
